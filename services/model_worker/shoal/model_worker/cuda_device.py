"""An NVIDIA GPU as a device: load the model, measure what a step needs, size the KV cache, capture graphs."""

from __future__ import annotations

import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.device_loading import describe, load_for_device
from shoal.model_worker.engine_setup import Device, Progress, SetupError, choose_max_model_len
from shoal.model_worker.loader import LoadedModel
from shoal.model_worker.runner.cuda import CudaRunner
from shoal.model_worker.runner.warm_up import prompt_plan
from shoal.model_worker.sampling.sampler import Sampler


def make_cuda_device(config: WorkerConfig, progress: Progress) -> Device:
    """See `engine_setup.MakeDevice`."""
    if not torch.cuda.is_available():
        raise SetupError(
            "device is cuda, but PyTorch sees no CUDA device; check the driver, or use --device cpu "
            f"(this PyTorch was built for CUDA {torch.version.cuda or 'not at all'})"
        )
    loaded = load_for_device(config, progress, "cuda")
    model_config = loaded.config
    progress("memory", 0.0)
    num_blocks = config.num_blocks or _num_blocks_that_fit(config, loaded)
    max_model_len = choose_max_model_len(config, model_config.max_position_embeddings, num_blocks)
    runner = _make_runner(config, loaded, num_blocks, max_model_len)
    progress("warm-up", 0.0)
    runner.warm_up()
    progress("warm-up", 1.0)
    return describe(loaded, runner, kv_layout=runner.layout.name)


def _make_runner(config: WorkerConfig, loaded: LoadedModel, num_blocks: int, max_model_len: int) -> CudaRunner:
    try:
        return CudaRunner(
            loaded.model,
            loaded.config,
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            sampler=Sampler(config.max_num_seqs, loaded.config.vocab_size),
            dtype=loaded.dtype,
        )
    except (ValueError, torch.cuda.OutOfMemoryError) as error:
        raise SetupError(str(error)) from None


def _num_blocks_that_fit(config: WorkerConfig, loaded: LoadedModel) -> int:
    """Blocks in gpu_memory_utilization of the GPU's memory, beside the weights and what the largest step needs."""
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * config.gpu_memory_utilization) - (total - free)
    step_bytes, block_bytes = _measure_step(config, loaded)
    torch.cuda.empty_cache()  # the small cache of the measurement
    num_blocks = (allowed - step_bytes) // block_bytes
    if num_blocks < 1:
        raise SetupError(
            f"gpu_memory_utilization is {config.gpu_memory_utilization:g}: of {total >> 20} MiB, "
            f"{(total - free) >> 20} MiB are in use with the weights and the largest step needs {step_bytes >> 20} "
            f"MiB, so no KV block of {block_bytes >> 10} KiB fits; raise it, or lower max_num_batched_tokens "
            f"({config.max_num_batched_tokens})"
        )
    return int(num_blocks)


def _measure_step(config: WorkerConfig, loaded: LoadedModel) -> tuple[int, int]:
    """Bytes that a step of max_num_batched_tokens takes beside weights and cache, and bytes of a KV block."""
    num_tokens = min(config.max_num_batched_tokens, loaded.config.max_position_embeddings - 1)
    num_blocks = -(-num_tokens // config.block_size)
    runner = _make_runner(config, loaded, num_blocks, num_tokens)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.execute(prompt_plan(num_tokens, config.block_size))
    return torch.cuda.max_memory_allocated() - before, runner.layout.block_bytes
