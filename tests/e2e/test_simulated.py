"""Made-up GPUs serve made-up tokens that are the real tokenizer's."""

from __future__ import annotations

from pathlib import Path

from shoal.client import Client
from support.shoal_up import manifest, shoal_up


def test_a_simulated_mesh_answers_a_chat(tmp_path: Path) -> None:
    document = manifest(workers={"replicas": 2, "device": "simulated"})
    with shoal_up(tmp_path, document) as up, Client(up.endpoint, timeout_s=60) as client:
        answer = client.chat([{"role": "user", "content": "Are you real?"}], max_tokens=32, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == len(answer.token_ids) == 32
    assert answer.text
