"""Builds what the engine's loop needs, from the configuration. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.messages import EngineInfo
from shoal.model_worker.scheduler import Scheduler, SchedulerConfig, make_policy
from shoal.model_worker.simulated import SimulatedRunner
from shoal.model_worker.simulated_timing import SIMULATED_GPUS, FixedTimer, StepTimer
from shoal.model_worker.step import Runner
from shoal.model_worker.tenants import TokensProblem

if TYPE_CHECKING:
    from shoal.model_worker.kv_offload.offload import KvOffload


class SetupError(Exception):
    """The model cannot be served as configured; the message is for the operator."""


Progress = Callable[[str, float], None]
"""(stage, fraction of it in [0, 1])."""


@dataclass(frozen=True, slots=True)
class Device:
    """A runner with its model loaded, and what the rest must know about the two."""

    runner: Runner
    model_digest: str
    kv_layout: str
    """Name of the cache's layout, with the codec's suffix: what makes blocks of workers exchangeable."""
    dtype: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_position: int
    """Longest sequence that the model can take."""
    kv_memory: KvMemory | None = None
    """The bytes of its KV cache, where it has one."""


class MakeDevice(Protocol):
    """Loads a model onto a device."""

    def __call__(self, config: WorkerConfig, progress: Progress) -> Device:
        """config: with the device's defaults filled in. Raises SetupError or OSError."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """All that `engine.Engine` ties together, and what to tell the front."""

    scheduler: Scheduler
    cache: KVCacheManager
    runner: Runner
    info: EngineInfo
    offload: KvOffload | None = None
    """The use of a KV store, if there is one. Its threads run."""


_DEVICES = {
    "cpu": "shoal.model_worker.cpu_device:make_cpu_device",
    "cuda": "shoal.model_worker.cuda_device:make_cuda_device",
    "simulated": "shoal.model_worker.engine_setup:make_simulated_device",
}


def set_up(config: WorkerConfig, progress: Progress) -> EngineParts:
    """Loads the model and sizes everything to it. Raises SetupError or OSError, or whatever the device does."""
    config = config.with_device_defaults()
    if config.device != "simulated" and not config.model:
        raise SetupError("model is required: give --model a folder, a file or a URI")
    if config.kv_codec != "none" and not config.kv_store_socket:
        raise SetupError(f"kv_codec is {config.kv_codec}, which is for blocks in a store; give kv_store_socket as well")
    module, _, name = _DEVICES[config.device].partition(":")
    make_device = cast(MakeDevice, getattr(import_module(module), name))
    device = make_device(config, progress)
    num_blocks = device.runner.num_blocks
    max_model_len = choose_max_model_len(config, device.max_position, num_blocks)
    cache = KVCacheManager(num_blocks, config.block_size)
    limits = _limits(config, max_model_len)
    policy = make_policy(config.scheduling_policy, priority_aging_s=config.priority_aging_s)
    offload = _use_kv_store(config, device, cache) if config.kv_store_socket else None
    scheduler = Scheduler(limits, cache, policy, eos_token_ids=frozenset(device.eos_token_ids), block_source=offload)
    info = EngineInfo(
        model_digest=device.model_digest,
        kv_layout=device.kv_layout,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        vocab_size=device.vocab_size,
        eos_token_ids=device.eos_token_ids,
        device=config.device,
        dtype=device.dtype,
    )
    return EngineParts(scheduler, cache, device.runner, info, offload)


def _use_kv_store(config: WorkerConfig, device: Device, cache: KVCacheManager) -> KvOffload:
    from shoal.model_worker.kv_offload.setup import make_offload

    if device.kv_memory is None:
        raise SetupError(f"kv_store_socket is {config.kv_store_socket}, but device {config.device} has no KV to store")
    try:
        return make_offload(config, device.kv_memory, cache, device.model_digest, device.kv_layout)
    except TokensProblem as problem:
        raise SetupError(str(problem)) from None


def _limits(config: WorkerConfig, max_model_len: int) -> SchedulerConfig:
    try:
        return SchedulerConfig(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens,
        )
    except ValueError as error:
        raise SetupError(str(error)) from None


def choose_max_model_len(config: WorkerConfig, max_position: int, num_blocks: int) -> int:
    """The longest sequence to serve: as configured, or all that model and cache allow. Raises SetupError."""
    room = num_blocks * config.block_size
    if config.max_model_len == 0:
        return min(max_position, room)
    if config.max_model_len > max_position:
        raise SetupError(f"max_model_len is {config.max_model_len}; the model takes at most {max_position} tokens")
    if config.max_model_len > room:
        memory = "gpu_memory_utilization" if config.device == "cuda" else "kv_cache_memory_bytes"
        raise SetupError(
            f"max_model_len is {config.max_model_len}, but {num_blocks} KV blocks of {config.block_size} hold only "
            f"{room} tokens; lower it, or raise {memory} or num_blocks"
        )
    return config.max_model_len


_SIMULATED_VOCAB_SIZE = 32000
SIMULATED_MAX_POSITION = 1 << 17
SIMULATED_NUM_BLOCKS = 4096


def make_simulated_device(config: WorkerConfig, progress: Progress) -> Device:
    """A device without a model; see `simulated`. Of one that is named, only the tokenizer's size is read."""
    vocab_size = config.simulated_vocab_size or _vocab_size_of(config, progress)
    progress("simulated model", 1.0)
    timer: StepTimer
    if config.simulated_model:
        gpu = SIMULATED_GPUS[config.simulated_model]
        timer, num_blocks = replace(gpu.timer, time_scale=config.simulated_time_scale), gpu.num_blocks
    else:
        scale = config.simulated_time_scale
        timer = FixedTimer(config.simulated_step_ms / 1e3 * scale, config.simulated_token_us / 1e6 * scale)
        num_blocks = SIMULATED_NUM_BLOCKS
    runner = SimulatedRunner(
        timer,
        num_blocks=config.num_blocks or num_blocks,
        num_slots=config.max_num_seqs,
        vocab_size=vocab_size,
        max_pending_steps=2 if config.simulated_model else 1,
    )
    return Device(
        runner=runner,
        model_digest=f"simulated-{vocab_size}",
        kv_layout="simulated-v1",
        dtype="none",
        vocab_size=vocab_size,
        eos_token_ids=(vocab_size - 1,),
        max_position=SIMULATED_MAX_POSITION,
    )


def _vocab_size_of(config: WorkerConfig, progress: Progress) -> int:
    """Of the model's tokenizer, so that gateways find a text for each id."""
    if not config.model:
        return _SIMULATED_VOCAB_SIZE
    # Here, not above: the virtual-time simulator never fetches anything.
    from shoal.artifacts import ArtifactError, LogProgress, resolve
    from shoal.model_worker.simulated_vocabulary import VocabularyError, read_vocab_size

    progress("fetch", 0.0)
    try:
        path = resolve(
            config.model,
            progress=LogProgress(config.model),
            contents="tokenizer",
            timeout_s=config.load_timeout_s,
        )
        return read_vocab_size(path)
    except (ArtifactError, VocabularyError) as error:
        raise SetupError(f"{error}; or give simulated_vocab_size") from error
