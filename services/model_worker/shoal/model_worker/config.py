"""Every setting of a model worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

from shoal.config import option
from shoal.model_worker.scheduler import PolicyName
from shoal.model_worker.simulated_timing import SIMULATED_GPUS, SimulatedModel

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(ge=0)]
DeviceName = Literal["cpu", "cuda", "simulated"]


@dataclass(frozen=True, slots=True)
class DeviceDefaults:
    """What suits a device, for settings that the operator leaves alone."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    engine_stall_timeout_s: float
    """0: never. On a CPU one step of a large model can take minutes."""


DEVICE_DEFAULTS: dict[DeviceName, DeviceDefaults] = {
    "cpu": DeviceDefaults(16, 64, 512, 0.0),
    "cuda": DeviceDefaults(64, 512, 8192, 120.0),
    "simulated": DeviceDefaults(16, 64, 512, 0.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Serves one model: token ids in, token ids out."""

    model: str = option("", "Folder, GGUF file or URI of the model. Required unless device is simulated.")
    served_model_name: str = option("", "Name that GetInfo reports; empty: the last part of --model.")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: Port = option(50061, "gRPC port; 0 picks a free one.")
    metrics_port: Port = option(9461, "Port of Prometheus /metrics; 0 picks a free one.")
    device: DeviceName = option(
        "cpu", "What computes. simulated: no model; tokens are hashes, for tests of everything around the engine."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "Type of the weights in memory; auto: the file's.")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = option(
        "auto", "How to read the weights. dummy: random ones, for tests."
    )
    max_model_len: NotNegative = option(0, "Longest prompt plus output, in tokens; 0: what model and cache allow.")
    block_size: NotNegative = option(0, "Tokens in a KV block; 0: 16, on a GPU 64 (there a power of two from 16).")
    num_blocks: NotNegative = option(0, "KV blocks; 0: as many as fit in the memory for them.")
    kv_cache_memory_bytes: Positive = option(1 << 30, "Memory for KV blocks on a CPU.")
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = option(
        0.9, "Share of a GPU's memory that the worker may use; what weights and steps leave of it holds KV blocks."
    )
    max_num_seqs: NotNegative = option(0, "Most sequences in one step; 0: 64, on a GPU 512.")
    max_num_batched_tokens: NotNegative = option(
        0, "Most tokens in one step, at least --max-num-seqs; 0: 512, on a GPU 8192."
    )
    max_queued_requests: Positive = option(256, "Requests that may wait; more are refused with a retry hint.")
    max_queued_tokens: Positive = option(1 << 20, "Tokens that waiting requests may have to compute.")
    scheduling_policy: PolicyName = option("priority", "priority: smaller values first, with aging. fcfs: by arrival.")
    priority_aging_s: Annotated[float, Meta(gt=0)] = option(
        30.0, "Seconds of waiting that outweigh one step of priority, so that nothing starves."
    )
    threads: NotNegative = option(0, "Threads that compute; 0: one a core.")
    engine_nice: Annotated[int, Meta(ge=0, le=19)] = option(
        19, "Niceness of the computing process on a CPU: what carries its tokens goes first. 0: equal shares."
    )
    role: Literal["both", "prefill", "decode"] = option(
        "both", "Its part in requests. Reading prompts and writing answers apart is not there yet: others are refused."
    )
    tensor_parallel_size: Positive = option(1, "Devices that share each layer; more than 1 is refused for now.")
    pipeline_parallel_size: Positive = option(1, "Groups of layers on devices of their own; the same.")
    expert_parallel_size: Positive = option(1, "Devices that share the experts of a layer; the same.")
    data_parallel_size: Positive = option(1, "Copies of what is not experts; the same. Other workers are no copies.")
    quantization: Literal["auto", "none", "fp8", "awq", "gptq"] = option(
        "auto", "How weights are made smaller; auto: as the model's files say. Others than auto and none are refused."
    )
    speculative_method: Literal["", "ngram", "draft_model", "eagle"] = option(
        "", "Who guesses tokens ahead; empty: nobody. All others are refused for now."
    )
    num_speculative_tokens: NotNegative = option(0, "Tokens guessed at a time; more than 0 is refused for now.")
    draft_model: str = option("", "URI of the model that guesses; refused for now.")
    lora_registry: str = option("", "gRPC address of the registry of adapters, host:port; refused for now.")
    seed: NotNegative = option(0, "Seeds dummy weights. Requests without a seed draw their own.")
    coalesce_above_streams: NotNegative = option(
        8, "Up to this many streams each token is sent at once; with more, several share a message."
    )
    coalesce_max_tokens: Positive = option(8, "Most tokens that wait for one message.")
    coalesce_max_delay_ms: Positive = option(30, "Longest time that a token waits for others.")
    client_stall_timeout_s: Annotated[float, Meta(gt=0)] = option(
        60.0, "A client that reads nothing for this long is cut off."
    )
    engine_stall_timeout_s: Seconds | None = option(
        None,
        "An engine that has work and ends no step for this long is killed, and the worker ends; 0: never. Left out: "
        "120 on a GPU, else never.",
    )
    kv_event_buffer: Positive = option(8192, "KV events kept for subscribers that are behind; older: a snapshot.")
    drain_timeout_s: Seconds = option(60.0, "How long running requests may go on after SIGTERM.")
    load_timeout_s: Annotated[float, Meta(gt=0)] = option(1800.0, "Longest time that loading the model may take.")
    kv_store_socket: str = option("", "Unix socket of the node's KV store; empty: blocks stay on the device.")
    kv_store_address: str = option(
        "",
        "Its gRPC address, host:port or unix:PATH, to tell routers what it holds; empty: they are not told. On this "
        "host, if the tokens file has the operator's, which is sent there as it is.",
    )
    kv_store_tokens_file: str = option(
        "",
        'TOML file of tenants and what proves them to a store that asks for that, tenant = "token"; others do not use '
        "the store then. Read again when it changes. Empty: everybody uses it, without a token.",
    )
    kv_codec: Literal["none", "fp8"] = option(
        "none",
        "Form in which the store has blocks. fp8: half of bfloat16's bytes, a quarter of float32's, and not quite what "
        "was computed; workers share blocks with those of the same codec only.",
    )
    kv_store_write_back: Literal["committed", "reused", "evicted", "off"] = option(
        "committed",
        "Which blocks are stored: as they are computed, as a second request uses them, as the device is about to give "
        "them up (the others do that too), or none.",
    )
    kv_store_timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = option(
        250, "Time after which a store that does not answer counts as lost for a while."
    )
    kv_store_lookup_wait_ms: Annotated[int, Meta(ge=0, le=60_000)] = option(
        20, "Longest time that a request waits to hear what the store has."
    )
    kv_store_peers_wait_ms: Annotated[int, Meta(ge=0, le=1000)] = option(
        10, "Longest time that the store may take to ask other stores for blocks that it lacks; 0: they are not asked."
    )
    kv_store_wait_budget_ms: Annotated[int, Meta(ge=0, le=60_000)] = option(
        250, "What waiting for it in vain may cost at first, all requests together; it grows by what loads save."
    )
    kv_store_tenants: Annotated[int, Meta(ge=1, le=1024)] = option(
        8,
        "Tenants whose sessions with it stay open: three each, one of which has memory to write through, 16 MiB beside "
        "a CPU and 128 MiB beside a GPU, and as many of all together to bring blocks from disk, four at least. A "
        "tenant that comes back after so many others waits for new ones, and for its blocks to be mapped anew.",
    )
    kv_store_by_layer: bool = option(
        True,
        "Whether a request that is alone on a GPU computes behind its blocks as they arrive, layer by layer where that "
        "is sooner.",
    )
    kv_store_queued_bytes: Positive = option(
        8 << 30, "Blocks that may wait on the device to be stored; more wait until the device is about to give them up."
    )
    kv_store_event_keys: NotNegative = option(1 << 18, "Most blocks in the store that routers are told of; 0: none.")
    simulated_model: Literal["", SimulatedModel] = option(
        "",
        "What a simulated device times its steps like, with that device's sizes; empty: by --simulated-step-ms and "
        "--simulated-token-us.",
    )
    simulated_time_scale: Annotated[float, Meta(gt=0)] = option(
        1.0, "Multiplies the time of simulated steps: 0.1 is ten times as fast."
    )
    simulated_step_ms: Seconds = option(0.0, "Time of a simulated step, without --simulated-model.")
    simulated_token_us: Seconds = option(0.0, "Time added for each of its tokens.")
    simulated_vocab_size: NotNegative = option(
        0,
        "Vocabulary of the simulated model; its last id ends the output. 0: as large as that of --model's tokenizer, "
        "which is all that is read of it; without --model 32000.",
    )
    otlp_endpoint: str = option("", "Where traces go, such as http://127.0.0.1:4317; empty: nowhere.")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "Least severe lines logged.")
    log_format: Literal["auto", "json", "console"] = option("auto", "auto: readable on a terminal, JSON elsewhere.")

    def with_device_defaults(self) -> WorkerConfig:
        """This configuration with what was left to the device filled in. Of such a one, itself."""
        defaults = self._device_defaults
        max_num_batched_tokens = self.max_num_batched_tokens or defaults.max_num_batched_tokens
        stall_timeout_s = self.engine_stall_timeout_s
        return replace(
            self,
            block_size=self.block_size or defaults.block_size,
            max_num_seqs=self.max_num_seqs or min(defaults.max_num_seqs, max_num_batched_tokens),
            max_num_batched_tokens=max_num_batched_tokens,
            engine_stall_timeout_s=defaults.engine_stall_timeout_s if stall_timeout_s is None else stall_timeout_s,
        )

    @property
    def _device_defaults(self) -> DeviceDefaults:
        if self.device != "simulated" or not self.simulated_model:
            return DEVICE_DEFAULTS[self.device]
        gpu = SIMULATED_GPUS[self.simulated_model]
        return DeviceDefaults(gpu.block_size, gpu.max_num_seqs, gpu.max_num_batched_tokens, 0.0)

    @property
    def model_name(self) -> str:
        """The public name."""
        return self.served_model_name or self.model.rstrip("/").rpartition("/")[2] or self.device
