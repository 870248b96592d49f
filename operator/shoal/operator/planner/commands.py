"""Command lines. Flags mirror each service's `config.py`; every setting that the spec has is given, so no environment
variable or settings file can change what the manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.operator.api import InferenceService, worker_sizes
from shoal.operator.api.defaults import KvStoreSizes
from shoal.operator.api.roles import WorkerRole
from shoal.operator.api.spec import EndpointPicker, Failover, InferenceServiceSpec, Workers
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.model_uri import base_config, with_digest
from shoal.operator.planner.plan import Observed

Flags = dict[str, str | int | float | None]
_ENVOY_LOG_LEVELS = {"debug": "info", "info": "warning", "warning": "warning", "error": "error"}


@dataclass(frozen=True, slots=True)
class KvStorePlace:
    """Where a node's KV store is."""

    socket: str
    """Path of its Unix socket."""
    address: str
    """Of its gRPC port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRegistrySizes:
    """How much a registry of adapters keeps, and fetches at a time."""

    max_bytes: int
    max_adapter_bytes: int
    max_publishes: int


@dataclass(frozen=True, slots=True)
class KvPeers:
    """How a KV store meets those of other pods."""

    file: str
    """Of all their addresses."""
    address: str
    """Its own among them."""
    port: int
    data_port: int
    secret_file: str


def worker(
    service: InferenceService,
    observed: Observed,
    host: str,
    ports: Mapping[str, int],
    *,
    threads: int,
    drain_timeout_s: float,
    kv_store: KvStorePlace | None = None,
    role: WorkerRole | None = None,
    lora_registry: str | None = None,
) -> tuple[str, ...]:
    """`shoal-worker`. `role`: its part in requests and how the model is divided; None: all of it, on one device.
    `lora_registry`: where adapters are; None: there are none."""
    spec, sizes = service.spec, worker_sizes(service.spec)
    flags: Flags = {
        "model": observed.model_path,
        "served-model-name": spec.model.name,
        "load-format": spec.model.load_format,
        "dtype": spec.model.dtype,
        "max-model-len": spec.model.max_model_len,
        "device": spec.workers.device,
        "threads": threads,
        "block-size": sizes.block_size,
        "kv-cache-memory-bytes": sizes.kv_cache_memory_bytes,
        "gpu-memory-utilization": sizes.gpu_memory_utilization,
        "max-num-seqs": sizes.max_num_seqs,
        "max-num-batched-tokens": sizes.max_num_batched_tokens,
        "max-queued-requests": spec.workers.max_queued_requests,
        **_simulated(spec.workers),
        **({} if role is None else {"quantization": spec.model.quantization, **_speculative(spec), **_part(role)}),
        **({} if kv_store is None else _store_of(service, kv_store)),
        "lora-registry": lora_registry,
        "drain-timeout-s": drain_timeout_s,
    }
    return _service(observed.python, "shoal.model_worker.main", flags | _listening(service, host, ports))


def _store_of(service: InferenceService, place: KvStorePlace) -> Flags:
    """How a worker uses the store beside it."""
    codec = service.spec.kv_cache.codec
    flags: Flags = {"kv-store-socket": place.socket, "kv-store-address": place.address}
    return flags if codec == "none" else flags | {"kv-codec": codec}


def kv_store(
    service: InferenceService,
    observed: Observed,
    host: str,
    ports: Mapping[str, int],
    *,
    sizes: KvStoreSizes,
    socket: str,
    disk_folder: str,
    drain_timeout_s: float,
    peers: KvPeers | None = None,
) -> tuple[str, ...]:
    """`shoal-kv-store`."""
    flags: Flags = {
        "socket-path": socket,
        "memory-bytes": sizes.memory_bytes,
        "chunk-bytes": sizes.chunk_bytes,
        "drain-timeout-s": drain_timeout_s,
    }
    if peers is not None:
        flags |= {
            "peers": f"file:{peers.file}",
            "peer-address": peers.address,
            "peer-host": host,
            "peer-port": peers.port,
            "peer-data-port": peers.data_port,
            "peer-secret-file": peers.secret_file,
        }
    if sizes.disk_bytes:
        flags |= {
            "disk-folder": disk_folder,
            "disk-bytes": sizes.disk_bytes,
            "disk-segment-bytes": sizes.disk_segment_bytes,
        }
    return _service(observed.python, "shoal.kv_store.main", flags | _listening(service, host, ports))


def lora_registry(
    service: InferenceService,
    observed: Observed,
    host: str,
    ports: Mapping[str, int],
    *,
    sizes: LoraRegistrySizes,
    folder: str,
    adapters_file: str,
    source_cache: str | None,
    drain_timeout_s: float,
) -> tuple[str, ...]:
    """`shoal-lora-registry`, whose adapters are those of a file alone."""
    flags: Flags = {
        "folder": folder,
        "adapters-file": adapters_file,
        "max-bytes": sizes.max_bytes,
        "max-adapter-bytes": sizes.max_adapter_bytes,
        "max-publishes": sizes.max_publishes,
        "base-config": base_config(service.spec.model),
        "source-cache": source_cache,
        "drain-timeout-s": drain_timeout_s,
    }
    argv = _service(observed.python, "shoal.lora_registry.main", flags | _listening(service, host, ports))
    return (*argv, "--read-only")


def tokenizer(
    service: InferenceService, observed: Observed, host: str, ports: Mapping[str, int], *, drain_timeout_s: float
) -> tuple[str, ...]:
    """`shoal-tokenizer`."""
    flags: Flags = {
        "model": observed.model_path,
        "chat-template": service.spec.model.chat_template,
        "drain-timeout-s": drain_timeout_s,
    }
    return _service(observed.python, "shoal.tokenizer.main", flags | _listening(service, host, ports))


def gateway(
    service: InferenceService,
    observed: Observed,
    host: str,
    ports: Mapping[str, int],
    *,
    mesh: Endpoint,
    tokenizer_target: str,
    workers_file: str,
    peers_file: str,
    drain_timeout_s: float,
) -> tuple[str, ...]:
    """`shoal-gateway`. `tokenizer_target` in gRPC's words; `peers_file` is for those that have a port `peer`."""
    spec = service.spec
    flags: Flags = {
        "http-port": ports["http"],
        "mesh-address": str(mesh),
        "tokenizer-address": tokenizer_target,
        "workers-file": workers_file,
        "peers-file": peers_file if "peer" in ports else None,
        "peer-port": ports.get("peer"),
        "routing-policy": spec.routing.policy,
        "api-keys-file": spec.gateway.auth.api_keys_file if spec.gateway.auth is not None else None,
        **_flow_control(service),
        **_failover(spec.failover),
        **_endpoint_picker(spec.gateway.endpoint_picker),
        "drain-timeout-s": drain_timeout_s,
    }
    return _service(observed.python, "shoal.gateway.main", flags | _listening(service, host, ports))


def envoy(binary: str, bootstrap: str, *, concurrency: int, log_level: str) -> tuple[str, ...]:
    """Envoy. Without hot restart it leaves no shared memory, and any number of Envoys run side by side."""
    return (
        binary,
        "-c",
        bootstrap,
        "--disable-hot-restart",
        "--concurrency",
        str(concurrency),
        "--log-level",
        _ENVOY_LOG_LEVELS[log_level],
        # How long streams live on when a listener changes; endpoints and clusters change without closing any.
        "--drain-time-s",
        "60",
    )


def environment(*, num_threads: int, gpu: str | None = None) -> dict[str, str]:
    """What every Python service gets, and the one GPU that it sees, if any. SAFEPATH keeps the current folder's
    `operator/` and `kernels/` from shadowing packages; OMP_NUM_THREADS holds from the first import on, before a flag
    can be read."""
    shown = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    return {"OMP_NUM_THREADS": str(num_threads), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **shown}


def _speculative(spec: InferenceServiceSpec) -> Flags:
    speculative = spec.speculative
    if speculative is None:
        return {}
    draft = speculative.draft_model
    return {
        "speculative-method": speculative.method,
        "num-speculative-tokens": speculative.num_speculative_tokens,
        "draft-model": None if draft is None else with_digest(draft.uri, draft.sha256),
    }


def _part(role: WorkerRole) -> Flags:
    return {
        "role": role.name,
        "tensor-parallel-size": role.parallelism.tensor,
        "pipeline-parallel-size": role.parallelism.pipeline,
        "expert-parallel-size": role.parallelism.expert,
        "data-parallel-size": role.parallelism.data,
    }


def _simulated(workers: Workers) -> Flags:
    simulated = workers.simulated
    if simulated is None:
        return {}
    return {
        "simulated-model": simulated.model,
        "simulated-time-scale": simulated.time_scale,
        "simulated-step-ms": simulated.step_milliseconds,
        "simulated-token-us": simulated.token_microseconds,
    }


def _endpoint_picker(picker: EndpointPicker | None) -> Flags:
    return (
        {"endpoint-picker": "off"} if picker is None else {"endpoint-picker": "on", "endpoint-picker-port": picker.port}
    )


def _failover(failover: Failover) -> Flags:
    return {
        "max-moves": failover.max_moves,
        "stream-stall-timeout-s": failover.stream_stall_seconds,
        "first-token-timeout-s": failover.first_token_seconds,
        "move-wait-s": failover.move_wait_seconds,
        "rebalance": "on" if failover.rebalance else "off",
    }


def _flow_control(service: InferenceService) -> Flags:
    flow = service.spec.flow_control
    tenants = {tenant.name: tenant for tenant in flow.tenants}

    def of_each(values: Mapping[str, float | None]) -> str | None:
        return ",".join(f"{name}={value}" for name, value in values.items() if value is not None) or None

    return {
        "flow-control": "on" if flow.enabled else "off",
        "num-gateways": service.spec.gateway.replicas,
        "max-queued-requests": flow.max_queued_requests,
        "max-queued-tokens": flow.max_queued_tokens,
        "max-queue-s": flow.max_queue_seconds,
        "max-queued-requests-per-tenant": flow.max_queued_requests_per_tenant,
        "max-queued-tokens-per-tenant": flow.max_queued_tokens_per_tenant,
        "priority-step-s": flow.priority_step_seconds,
        "worker-queue-ratio": flow.worker_queue_ratio,
        "tenant-weights": of_each({name: tenant.weight for name, tenant in tenants.items()}),
        "tenant-max-queued-requests": of_each({name: tenant.max_queued_requests for name, tenant in tenants.items()}),
        "tenant-max-queued-tokens": of_each({name: tenant.max_queued_tokens for name, tenant in tenants.items()}),
    }


def _listening(service: InferenceService, host: str, ports: Mapping[str, int]) -> Flags:
    observability = service.spec.observability
    return {
        "host": host,
        "port": ports["grpc"],
        "metrics-port": ports["metrics"],
        "log-level": observability.log_level,
        "otlp-endpoint": observability.otlp_endpoint,
    }


def _service(python: str, module: str, flags: Flags) -> tuple[str, ...]:
    given = [(name, value) for name, value in flags.items() if value is not None]
    return (python, "-m", module, *(f"--{name}={value}" for name, value in given))
