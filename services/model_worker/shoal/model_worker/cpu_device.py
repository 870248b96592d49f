"""The CPU as a device: fetch the model, load it, size the KV cache, warm up. Control code; but it imports torch."""

from __future__ import annotations

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.device_loading import codec_for, describe, load_for_device
from shoal.model_worker.engine_setup import Device, Progress, SetupError, choose_max_model_len
from shoal.model_worker.runner.cpu import CpuRunner, layout_for, num_blocks_for
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.sampling.sampler import Sampler


def make_cpu_device(config: WorkerConfig, progress: Progress) -> Device:
    """See `engine_setup.MakeDevice`."""
    loaded = load_for_device(config, progress, "cpu")
    model_config = loaded.config
    try:
        layout = layout_for(model_config, config.block_size, loaded.dtype)
    except ValueError as error:
        raise SetupError(str(error)) from None
    fitting = num_blocks_for(config.kv_cache_memory_bytes, model_config, config.block_size, loaded.dtype)
    num_blocks = config.num_blocks or fitting
    if num_blocks < 1:
        raise SetupError(
            f"kv_cache_memory_bytes is {config.kv_cache_memory_bytes}, less than one KV block of "
            f"{config.block_size} tokens ({layout.block_bytes} bytes)"
        )
    runner = CpuRunner(
        loaded.model,
        model_config,
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=choose_max_model_len(config, model_config.max_position_embeddings, num_blocks),
        sampler=Sampler(config.max_num_seqs, model_config.vocab_size),
        dtype=loaded.dtype,
        num_threads=config.threads or None,
    )
    progress("warm-up", 0.0)
    runner.warm_up()
    progress("warm-up", 1.0)
    codec = codec_for(layout, config.kv_codec)
    kv_memory = CpuKvMemory(runner.kv_cache, None if config.kv_codec == "none" else codec)
    return describe(loaded, runner, kv_layout=layout.name + codec.suffix, kv_memory=kv_memory)
