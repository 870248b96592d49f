"""What manifests may ask and the engine cannot do ends the worker at its start, with status 2 and one line."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from shoal.model_worker import main as worker_main
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.unsupported import find_unsupported


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("role", "prefill"),
        ("role", "decode"),
        ("tensor_parallel_size", 2),
        ("pipeline_parallel_size", 4),
        ("expert_parallel_size", 8),
        ("data_parallel_size", 2),
        ("quantization", "awq"),
        ("speculative_method", "ngram"),
        ("num_speculative_tokens", 4),
        ("draft_model", "hf://org/small"),
        ("lora_registry", "registry:50051"),
    ],
)
def test_each_is_named_with_its_value(setting: str, value: Any) -> None:
    reason = find_unsupported(WorkerConfig(model="m", **{setting: value}))
    assert reason is not None
    assert reason.startswith(f"--{setting.replace('_', '-')}={value}: ")
    assert "leave it out" in reason


def test_what_it_can_do_passes() -> None:
    assert find_unsupported(WorkerConfig(model="m", role="both", tensor_parallel_size=1, quantization="none")) is None


def test_a_worker_ends_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["shoal-worker", "--model=m", "--role=decode", "--tensor-parallel-size=2"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as caught:
        worker_main.main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--role=decode: this engine has no prefill and decode apart yet; give both, or leave it out" in line
    assert "--tensor-parallel-size=2" in line
