"""An NVIDIA GPU as a device: load the model, measure what a step needs, size the KV cache, capture graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shoal.kv_codec import Fp8
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.device_loading import codec_for, describe, load_for_device
from shoal.model_worker.engine_failure import describe_allocation
from shoal.model_worker.engine_setup import Device, Progress, SetupError, choose_max_model_len
from shoal.model_worker.loader import LoadedModel
from shoal.model_worker.runner.cuda import CudaRunner
from shoal.model_worker.runner.cuda_kv_memory import CudaKvMemory
from shoal.model_worker.runner.device_fp8 import DeviceFp8
from shoal.model_worker.runner.warm_up import prompt_plan

_LAUNCH_S_PER_LAYER = 0.6e-3
"""What one layer's operations cost the host when they are launched one by one (a Xeon of 2023, Triton 3.6)."""
_FLOPS_PER_S = 600e12
"""What an H100 makes of large bfloat16 products in a whole model."""
_MIN_GRAPH_TOKENS = 512


def make_cuda_device(config: WorkerConfig, progress: Progress) -> Device:
    """See `engine_setup.MakeDevice`."""
    _check_block_size(config.block_size)
    if not torch.cuda.is_available():
        raise SetupError(
            "device is cuda, but PyTorch sees no CUDA device; check the driver, or use --device cpu "
            f"(this PyTorch was built for CUDA {torch.version.cuda or 'not at all'})"
        )
    with explained("loading the weights", "use dtype bfloat16, a smaller model or a GPU with more memory"):
        loaded = load_for_device(config, progress, "cuda")
    graph_tokens = _max_graph_tokens(config, loaded)
    progress("memory", 0.0)
    steps = f"max_num_batched_tokens ({config.max_num_batched_tokens}) or max_num_seqs ({config.max_num_seqs})"
    with explained("measuring a step", f"lower {steps}"):
        num_blocks = config.num_blocks or _num_blocks_that_fit(config, loaded, graph_tokens)
    max_model_len = choose_max_model_len(config, loaded.config.max_position_embeddings, num_blocks)
    cache = f"num_blocks ({num_blocks})" if config.num_blocks else f"gpu_memory_utilization ({_utilization(config)})"
    with explained(f"allocating {num_blocks} KV blocks", f"lower {cache}"):
        runner = _make_runner(config, loaded, num_blocks, max_model_len)
    with explained("capturing graphs", f"lower {cache}, {steps}"):
        runner.warm_up(graph_tokens, lambda fraction: progress("graphs", fraction))
    if not config.kv_store_socket:
        return describe(loaded, runner, kv_layout=runner.layout.name)
    with explained("allocating memory to move KV blocks through", f"lower {cache}"):
        codec = codec_for(runner.layout, config.kv_codec)
        kv_memory = CudaKvMemory(runner.kv_cache, DeviceFp8(codec.shape) if isinstance(codec, Fp8) else None)
    return describe(loaded, runner, kv_layout=runner.layout.name + codec.suffix, kv_memory=kv_memory)


def _check_block_size(block_size: int) -> None:
    """A block of one KV head is a tile of the attention kernels, and TMA takes at most 256 rows."""
    if block_size & (block_size - 1) or not 16 <= block_size <= 256:
        raise SetupError(f"block_size is {block_size}; on a GPU it must be 16, 32, 64, 128 or 256 (0: 64)")


def _utilization(config: WorkerConfig) -> str:
    return f"{config.gpu_memory_utilization:g}"


@contextmanager
def explained(doing: str, advice: str) -> Iterator[None]:
    """Turns running out of memory, of a GPU or of one of its processors, into a SetupError with the numbers."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        text = f"out of GPU memory while {doing}: {describe_allocation(str(error))}{_memory_in_use()}; {advice}"
        raise SetupError(text) from None
    except Exception as error:
        if type(error).__name__ != "OutOfResources":  # Triton's; by name, for a CPU's PyTorch comes without Triton
            raise
        raise SetupError(
            f"a kernel needs more than a processor of this GPU has while {doing}: {error}; lower block_size, or use "
            "dtype bfloat16"
        ) from None


def _memory_in_use() -> str:
    """Who has the memory. Empty where the device cannot say."""
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return ""
    ours = torch.cuda.memory_reserved()
    others = max(0, total - free - ours)
    return (
        f" (of {total >> 20} MiB, this worker holds {ours >> 20}, other processes and the driver {others >> 20}, and "
        f"{free >> 20} are free)"
    )


def _max_graph_tokens(config: WorkerConfig, loaded: LoadedModel) -> int:
    """The largest step that is worth a graph: beyond, the device computes longer than the host takes to launch.

    A graph computes the tokens that it has room for, not those that it is given.
    """
    num_parameters = torch.cuda.memory_allocated() / loaded.dtype.itemsize
    launch_s = _LAUNCH_S_PER_LAYER * loaded.config.num_layers
    tokens = int(launch_s * _FLOPS_PER_S / (2 * num_parameters))
    return min(max(tokens, _MIN_GRAPH_TOKENS), config.max_num_batched_tokens)


def _make_runner(config: WorkerConfig, loaded: LoadedModel, num_blocks: int, max_model_len: int) -> CudaRunner:
    try:
        return CudaRunner(
            loaded.model,
            loaded.config,
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            dtype=loaded.dtype,
        )
    except ValueError as error:
        raise SetupError(
            f"this model cannot run on a GPU with dtype {str(loaded.dtype).removeprefix('torch.')} and block_size "
            f"{config.block_size}: {error}"
        ) from None


def _num_blocks_that_fit(config: WorkerConfig, loaded: LoadedModel, graph_tokens: int) -> int:
    """Blocks in gpu_memory_utilization of the GPU's memory, beside the weights and what steps need."""
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * config.gpu_memory_utilization) - (total - free)
    step_bytes, block_bytes = _measure_step(config, loaded, graph_tokens)
    torch.cuda.empty_cache()  # the small cache of the measurement
    num_blocks = (allowed - step_bytes) // block_bytes
    if num_blocks < 1:
        raise SetupError(
            f"gpu_memory_utilization is {_utilization(config)}: of {total >> 20} MiB, "
            f"{(total - free) >> 20} MiB are in use with the weights and steps need {step_bytes >> 20} "
            f"MiB, so no KV block of {block_bytes >> 10} KiB fits; raise it, or lower max_num_batched_tokens "
            f"({config.max_num_batched_tokens}) or max_num_seqs ({config.max_num_seqs})"
        )
    return int(num_blocks)


def _measure_step(config: WorkerConfig, loaded: LoadedModel, graph_tokens: int) -> tuple[int, int]:
    """Bytes that running takes beside weights and cache, and bytes of a KV block.

    Running takes the slots' state, a step of max_num_batched_tokens, and the memory that the graphs share: as much as
    the largest of them computes with, and the logits of every sequence.
    """
    num_tokens = min(config.max_num_batched_tokens, loaded.config.max_position_embeddings - 1)
    num_blocks = -(-num_tokens // config.block_size)
    before = torch.cuda.memory_allocated()
    runner = _make_runner(config, loaded, num_blocks, num_tokens)
    fixed = torch.cuda.memory_allocated() - before - num_blocks * runner.layout.block_bytes
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    runner.submit(prompt_plan(num_tokens, config.block_size)).result()
    step = torch.cuda.max_memory_allocated() - start
    graphs = step * graph_tokens // num_tokens + config.max_num_seqs * loaded.config.vocab_size * 4
    return fixed + step + graphs, runner.layout.block_bytes
