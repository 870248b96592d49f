"""An NVIDIA GPU as a device: load the model, measure what a step needs, size the KV cache, capture graphs."""

from __future__ import annotations

import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.device_loading import describe, load_for_device
from shoal.model_worker.engine_setup import Device, Progress, SetupError, choose_max_model_len
from shoal.model_worker.loader import LoadedModel
from shoal.model_worker.runner.cuda import CudaRunner
from shoal.model_worker.runner.warm_up import prompt_plan

_LAUNCH_S_PER_LAYER = 0.3e-3
"""What one layer's operations cost the host when they are launched one by one (16 cores of 2023, Triton 3.6)."""
_FLOPS_PER_S = 600e12
"""What an H100 makes of large bfloat16 products in a whole model."""
_MIN_GRAPH_TOKENS = 512


def make_cuda_device(config: WorkerConfig, progress: Progress) -> Device:
    """See `engine_setup.MakeDevice`."""
    if not torch.cuda.is_available():
        raise SetupError(
            "device is cuda, but PyTorch sees no CUDA device; check the driver, or use --device cpu "
            f"(this PyTorch was built for CUDA {torch.version.cuda or 'not at all'})"
        )
    loaded = load_for_device(config, progress, "cuda")
    model_config = loaded.config
    graph_tokens = _max_graph_tokens(config, loaded)
    progress("memory", 0.0)
    num_blocks = config.num_blocks or _num_blocks_that_fit(config, loaded, graph_tokens)
    max_model_len = choose_max_model_len(config, model_config.max_position_embeddings, num_blocks)
    runner = _make_runner(config, loaded, num_blocks, max_model_len)
    runner.warm_up(graph_tokens, lambda fraction: progress("graphs", fraction))
    return describe(loaded, runner, kv_layout=runner.layout.name)


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
    except (ValueError, torch.cuda.OutOfMemoryError) as error:
        raise SetupError(str(error)) from None


def _num_blocks_that_fit(config: WorkerConfig, loaded: LoadedModel, graph_tokens: int) -> int:
    """Blocks in gpu_memory_utilization of the GPU's memory, beside the weights and what steps need."""
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * config.gpu_memory_utilization) - (total - free)
    step_bytes, block_bytes = _measure_step(config, loaded, graph_tokens)
    torch.cuda.empty_cache()  # the small cache of the measurement
    num_blocks = (allowed - step_bytes) // block_bytes
    if num_blocks < 1:
        raise SetupError(
            f"gpu_memory_utilization is {config.gpu_memory_utilization:g}: of {total >> 20} MiB, "
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
