"""Workers of SmolLM2 and a store that asks for tokens, as processes: tenants keep to their own blocks."""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import sha256
from pathlib import Path

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import tenant_salt
from support.kv_store_process import start_kv_store
from support.model import smollm2_path
from support.worker_process import greedy_tokens, start_worker, worker_stub

PROMPT = [1000 + 7 * number % 20_000 for number in range(120)]
NUM_CACHED = 112
SECRETS = {"acme": "the secret of acme", "zeta": "the secret of zeta", "*": "the secret of the operator"}


async def test_tenants_with_tokens_share_a_store_and_no_blocks(tmp_path: Path) -> None:
    tables = (f'["{name}"]\ntoken_sha256 = "{sha256(text.encode()).hexdigest()}"\n' for name, text in SECRETS.items())
    (tmp_path / "tenants.toml").write_text("".join(tables))
    (tmp_path / "tokens.toml").write_text("".join(f'"{name}" = "{text}"\n' for name, text in SECRETS.items()))
    sizes = ("--memory-bytes=134217728", "--chunk-bytes=33554432")
    flags: tuple[str, ...] = (
        "--num-blocks=32",
        "--threads=1",
        "--dtype=float32",
        f"--kv-store-socket={tmp_path / 'kv.sock'}",
    )
    flags += (f"--kv-store-tokens-file={tmp_path / 'tokens.toml'}", "--kv-store-lookup-wait-ms=1000")
    acme, zeta, stranger = ({"cache_salt": tenant_salt(name)} for name in ("acme", "zeta", "stranger"))
    async with start_kv_store(tmp_path, *sizes, f"--tenants-file={tmp_path / 'tenants.toml'}") as store:
        watching = f"--kv-store-address={store.address}"
        async with contextlib.AsyncExitStack() as workers:
            first, second = await asyncio.gather(
                *(
                    workers.enter_async_context(start_worker(f"--model={smollm2_path()}", *flags, watching))
                    for _ in range(2)
                )
            )
            computed, _ = await greedy_tokens(first, PROMPT, **acme)
            await first.wait_metric("kv_store_stored_blocks_total", lambda value: value >= 7)
            assert await greedy_tokens(second, PROMPT, **zeta) == (computed, 0)
            assert await greedy_tokens(second, PROMPT, **stranger) == (computed, 0)
            assert await greedy_tokens(second, PROMPT, **acme) == (computed, NUM_CACHED)
            assert second.metric('kv_store_loaded_blocks_total{tier="memory"}') == 7
            assert second.metric('kv_store_unused_total{reason="no_account"}') == 1
            assert second.metric("kv_store_up") == 1
            async with worker_stub(second) as stub, asyncio.timeout(10):
                async for event in stub.SubscribeKvEvents(worker_pb2.SubscribeKvEventsRequest()):
                    if {event.snapshot.tier, event.stored.tier} & {worker_pb2.TIER_MEMORY}:
                        break  # told by the store, to whoever has the operator's token
            for process in (store, first, second):
                assert not any("the secret of" in str(line) for line in process.logs)
