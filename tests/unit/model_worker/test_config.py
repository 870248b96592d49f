"""Settings, and what a device gives those that were left alone."""

from __future__ import annotations

import pytest

from shoal.config import ConfigError, load
from shoal.model_worker.config import WorkerConfig


def read(*argv: str, **environ: str) -> WorkerConfig:
    return load(WorkerConfig, program="shoal-worker", argv=argv, environ=environ)


def test_settings_are_checked_on_the_way_in() -> None:
    with pytest.raises(ConfigError, match="block_size = '-1'"):
        read("--block-size=-1")
    with pytest.raises(ConfigError, match="engine_stall_timeout_s = '-1'"):
        read("--engine-stall-timeout-s=-1")
    config = read("--model=/models/tiny/", SHOAL_PORT="7")
    assert (config.port, config.model_name) == (7, "tiny")


@pytest.mark.parametrize(
    ("device", "sizes"),
    [("cpu", (16, 64, 512, 0.0)), ("simulated", (16, 64, 512, 0.0)), ("cuda", (64, 512, 8192, 120.0))],
)
def test_a_device_has_its_own_defaults(device: str, sizes: tuple[float, ...]) -> None:
    config = read(f"--device={device}").with_device_defaults()
    found = (config.block_size, config.max_num_seqs, config.max_num_batched_tokens, config.engine_stall_timeout_s)
    assert found == sizes
    assert config.with_device_defaults() == config


def test_what_is_given_stays() -> None:
    argv = ("--device=cuda", "--block-size=32", "--max-num-seqs=9", "--engine-stall-timeout-s=0")
    config = read(*argv).with_device_defaults()
    assert (config.block_size, config.max_num_seqs, config.max_num_batched_tokens) == (32, 9, 8192)
    assert config.engine_stall_timeout_s == 0.0


def test_no_more_sequences_than_tokens_in_a_step_by_default() -> None:
    assert read("--device=cuda", "--max-num-batched-tokens=256").with_device_defaults().max_num_seqs == 256
