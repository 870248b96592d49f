"""The use of a KV store, from the configuration."""

from __future__ import annotations

from typing import Final

from shoal.kv_client import KvClientOptions
from shoal.model_worker.config import DeviceName, WorkerConfig
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.offload import KvOffload
from shoal.model_worker.kv_offload.options import OffloadOptions
from shoal.model_worker.kv_offload.sessions import fingerprint_of
from shoal.model_worker.tenants import Accounts

_STAGING_BYTES: Final[dict[DeviceName, int]] = {"cpu": 16 << 20, "cuda": 128 << 20}
"""Of each tenant: what is written before the store is asked to take it."""
_FIRST_GUESSES: Final[dict[DeviceName, tuple[float, float]]] = {"cpu": (500.0, 4e9), "cuda": (20_000.0, 40e9)}
"""Prompt tokens a second, and bytes a second from the store's memory; of a GPU, an 8B model's on an H100."""
_WRITE_PATIENCE_S: Final[dict[DeviceName, float]] = {"cpu": 1.0, "cuda": 0.0}
"""A CPU that computes has no processor to spare: storing a block of SmolLM2 takes 0.1 to 0.2 ms of one. Beside a GPU
storing costs steps nothing."""


def make_offload(
    config: WorkerConfig, memory: KvMemory, cache: KVCacheManager, model_digest: str, kv_layout: str
) -> KvOffload:
    """config: with a store's socket. The store need not be there. Raises TokensProblem."""
    num_staging_blocks = min(max(_STAGING_BYTES[config.device] // memory.block_bytes, 2), 64)
    client = KvClientOptions(
        socket_path=config.kv_store_socket,
        tenant="",
        fingerprint=fingerprint_of(model_digest, kv_layout, config.kv_codec),
        block_bytes=memory.block_bytes,
        num_staging_blocks=0 if config.kv_store_write_back == "off" else num_staging_blocks,
        timeout_s=config.kv_store_timeout_ms / 1e3,
    )
    tokens_per_s, memory_bytes_per_s = _FIRST_GUESSES[config.device]
    options = OffloadOptions(
        client=client,
        write_back=config.kv_store_write_back,
        max_queued_blocks=max(config.kv_store_queued_bytes // memory.block_bytes, 1),
        write_patience_s=_WRITE_PATIENCE_S[config.device],
        lookup_wait_s=config.kv_store_lookup_wait_ms / 1e3,
        peers_wait_s=config.kv_store_peers_wait_ms / 1e3,
        wait_budget_s=config.kv_store_wait_budget_ms / 1e3,
        max_tenants=config.kv_store_tenants,
        by_layer=config.kv_store_by_layer,
        tokens_per_s=tokens_per_s,
        memory_bytes_per_s=memory_bytes_per_s,
    )
    return KvOffload(options, cache, memory, accounts=Accounts(config.kv_store_tokens_file))
