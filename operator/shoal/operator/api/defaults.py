"""What a worker gets where the manifest leaves it to the device: the worker's own defaults, on a CPU less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.operator.api.quantity import parse_quantity
from shoal.operator.api.spec import DeviceName, InferenceServiceSpec


@dataclass(frozen=True, slots=True)
class WorkerSizes:
    """How large a worker is, all of it decided."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory: str | int | None
    """As in the manifest; None on a GPU, where the cache gets what `gpu_memory_utilization` leaves, or what a simulated
    one has."""
    gpu_memory_utilization: float | None
    """In (0, 1]; None where there is no GPU."""

    @property
    def kv_cache_memory_bytes(self) -> int | None:
        """`kv_cache_memory` in bytes."""
        return None if self.kv_cache_memory is None else parse_quantity(self.kv_cache_memory)


@dataclass(frozen=True, slots=True)
class KvStoreSizes:
    """How large a node's KV store is."""

    memory_bytes: int
    disk_bytes: int
    """0: no disk."""
    chunk_bytes: int
    """Memory that a tenant gets at a time: a sixteenth of it all, between 1 and 64 MiB."""
    disk_segment_bytes: int
    """Of a file on disk: a sixteenth of it all, between 16 and 256 MiB."""


_ON_CPU: Final = WorkerSizes(16, 16, 512, "512Mi", None)
DEFAULTS: Final[dict[DeviceName, WorkerSizes]] = {
    "cpu": _ON_CPU,
    "cuda": WorkerSizes(64, 512, 8192, None, 0.9),
    "simulated": _ON_CPU,
}
_ON_SIMULATED_GPU: Final = WorkerSizes(64, 512, 8192, None, None)


def kv_store_sizes(spec: InferenceServiceSpec) -> KvStoreSizes | None:
    """The manifest's sizes of the store; None without one."""
    cpu, ssd = spec.kv_cache.cpu, spec.kv_cache.ssd
    if cpu is None:
        return None
    memory_bytes, disk_bytes = parse_quantity(cpu), 0 if ssd is None else parse_quantity(ssd)
    return KvStoreSizes(
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
        chunk_bytes=_part(memory_bytes, 1 << 20, 64 << 20),
        disk_segment_bytes=_part(disk_bytes, 16 << 20, 256 << 20),
    )


def _part(total: int, smallest: int, largest: int) -> int:
    """A power of two."""
    return min(max(1 << (total // 16).bit_length() >> 1, smallest), largest)


def worker_sizes(spec: InferenceServiceSpec) -> WorkerSizes:
    """The manifest's sizes, with the device's in the gaps."""
    workers, kv_cache, defaults = spec.workers, spec.kv_cache, DEFAULTS[spec.workers.device]
    if workers.simulated is not None and workers.simulated.model is not None:
        defaults = _ON_SIMULATED_GPU
    max_num_batched_tokens = workers.max_num_batched_tokens or defaults.max_num_batched_tokens
    return WorkerSizes(
        block_size=kv_cache.block_size or defaults.block_size,
        max_num_seqs=workers.max_num_seqs or min(defaults.max_num_seqs, max_num_batched_tokens),
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory=defaults.kv_cache_memory if kv_cache.memory is None else kv_cache.memory,
        gpu_memory_utilization=workers.gpu_memory_utilization or defaults.gpu_memory_utilization,
    )
