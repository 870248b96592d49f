"""`shoal up` with a KV store behind two workers: a prompt that one computed is loaded by the other."""

from __future__ import annotations

from pathlib import Path

from shoal.client import Client
from support.eventually import wait_until
from support.shoal_up import manifest, shoal_up

PROMPT = "The history of the lighthouse keepers of the northern islands. " * 12


def test_workers_share_prefixes_through_the_store(tmp_path: Path) -> None:
    document = manifest(
        workers={"replicas": 2, "threads": 1},
        kvCache={"memory": "64Mi", "cpu": "128Mi"},
        routing={"policy": "round_robin"},
    )
    with shoal_up(tmp_path, document) as up, Client(up.endpoint, timeout_s=120) as client:
        answers = [client.generate(PROMPT, temperature=0, max_tokens=4)]
        num_blocks = (answers[0].usage.prompt_tokens - 1) // 16
        wait_until(lambda: up.sum_metric("shoal_worker_kv_store_stored_blocks_total") >= num_blocks, "all is stored")
        answers += [client.generate(PROMPT, temperature=0, max_tokens=4) for _ in range(3)]
        assert len({answer.worker for answer in answers}) == 2
        num_full = 16 * num_blocks
        assert [answer.usage.cached_tokens for answer in answers] == [0, num_full, num_full, num_full]
        assert len({tuple(answer.token_ids) for answer in answers[1:]}) == 1
        [store] = up.components("shoal.kv_store.main")
        store.kill()
        assert client.generate(PROMPT, temperature=0, max_tokens=4).token_ids == answers[1].token_ids
        assert up.stop() == 0
