"""Rules over several fields, the machine and the model: arithmetic that cannot work is refused with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.artifacts import ArtifactError, parse_adapter_source, parse_source
from shoal.operator.api.defaults import kv_store_sizes, worker_sizes
from shoal.operator.api.laptop_rules import find_local_contradictions
from shoal.operator.api.model_rules import (
    ModelFacts,
    facts_of_config,
    find_disagreements,
    find_model_contradictions,
)
from shoal.operator.api.operation_rules import find_operation_contradictions
from shoal.operator.api.problems import Problem
from shoal.operator.api.quantity import format_bytes, parse_quantity
from shoal.operator.api.role_rules import find_role_contradictions
from shoal.operator.api.spec import InferenceService, InferenceServiceSpec

MIN_GPU_BLOCK_SIZE: Final = 16
MIN_KV_STORE: Final = 16 << 20
MIN_KV_DISK: Final = 256 << 20
_Parse = Callable[[str, str | None], object]
"""A source and its digest. Raises ArtifactError."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it is to run."""

    num_cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    """NVIDIA GPUs that may be used, each by what CUDA_VISIBLE_DEVICES calls it."""


def find_contradictions(
    service: InferenceService, machine: Machine | None = None, model: ModelFacts | None = None
) -> list[Problem]:
    """Every impossible combination. Rules that need a machine or a model are left out when it is not given.

    machine: the one on which everything is to run, as processes. model: what its files say; without them, what
    `spec.model.config` says.
    """
    spec = service.spec
    problems = _check_device(spec) + _check_batch(spec) + _check_model_source(spec)
    problems += _check_simulated(spec) + _check_gateway(spec) + _check_flow_control(spec) + _check_kv_store(spec)
    problems += find_role_contradictions(spec) + find_operation_contradictions(spec)
    if machine is not None:
        problems += find_local_contradictions(spec) + _check_machine(spec, machine)
    if model is not None and spec.model.config is not None:
        problems += find_disagreements(spec.model.config, model)
    if model is None and spec.model.config is not None:
        model = facts_of_config(spec.model.config)
    if model is not None and not problems:
        problems += find_model_contradictions(spec, model)
    return problems


def _check_device(spec: InferenceServiceSpec) -> list[Problem]:
    """Fields that another device has, or that have other limits on this one."""
    workers, kv_cache = spec.workers, spec.kv_cache
    problems = []
    if workers.device != "cuda":
        if workers.gpu_memory_utilization is not None:
            message = (
                f"{workers.gpu_memory_utilization:g} has no meaning for spec.workers.device = {workers.device}; leave "
                "it out, and give spec.kvCache.memory"
            )
            problems.append(Problem("spec.workers.gpuMemoryUtilization", message))
        return problems
    if kv_cache.memory is not None:
        message = (
            f"{kv_cache.memory!r} has no meaning for spec.workers.device = cuda, where KV blocks get what weights and "
            "steps leave of spec.workers.gpuMemoryUtilization; leave it out"
        )
        problems.append(Problem("spec.kvCache.memory", message))
    if kv_cache.block_size is not None and kv_cache.block_size < MIN_GPU_BLOCK_SIZE:
        message = f"{kv_cache.block_size} is too small for a GPU; give {MIN_GPU_BLOCK_SIZE} or more (64 is the default)"
        problems.append(Problem("spec.kvCache.blockSize", message))
    return problems


def _check_simulated(spec: InferenceServiceSpec) -> list[Problem]:
    simulated, device, path = spec.workers.simulated, spec.workers.device, "spec.workers.simulated"
    if simulated is None:
        return []
    if device != "simulated":
        return [Problem(path, f"has no meaning for spec.workers.device = {device}; leave it out, or give simulated")]
    times = {"stepMilliseconds": simulated.step_milliseconds, "tokenMicroseconds": simulated.token_microseconds}
    message = f"has no meaning beside {path}.model = {simulated.model}, whose times were measured; use timeScale"
    return [Problem(f"{path}.{name}", message) for name, time in times.items() if time and simulated.model is not None]


def _check_kv_store(spec: InferenceServiceSpec) -> list[Problem]:
    """The node's store, if there is one."""
    kv_cache, path = spec.kv_cache, "spec.kvCache"
    problems = []
    if kv_cache.cpu is not None and spec.workers.device == "simulated":
        message = "has no meaning for spec.workers.device = simulated, which has no KV to store; leave it out"
        problems.append(Problem(f"{path}.cpu", message))
    if kv_cache.ssd is not None and kv_cache.cpu is None:
        problems.append(Problem(f"{path}.ssd", f"needs memory in front of it; give {path}.cpu"))
    if kv_cache.ssd_folder is not None and kv_cache.ssd is None:
        problems.append(Problem(f"{path}.ssdFolder", f"has no meaning without {path}.ssd"))
    if kv_cache.ssd is not None and (kv_cache.ssd_folder is None) == (kv_cache.ssd_volume is None):
        message = f"needs a place; give {path}.ssdFolder, a folder of this service alone, or on Kubernetes ssdVolume"
        problems.append(Problem(f"{path}.ssd", message))
    for name, given, smallest in (("cpu", kv_cache.cpu, MIN_KV_STORE), ("ssd", kv_cache.ssd, MIN_KV_DISK)):
        if given is not None and parse_quantity(given) < smallest:
            message = f"{given!r} is too small for a KV store; give {format_bytes(smallest)} or more"
            problems.append(Problem(f"{path}.{name}", message))
    return problems


def _check_gateway(spec: InferenceServiceSpec) -> list[Problem]:
    gateway = spec.gateway
    problems = []
    if gateway.endpoint_picker is not None and gateway.replicas > 1:
        message = f"{gateway.replicas} gateways cannot share a port; give spec.gateway.replicas = 1, or leave it out"
        problems.append(Problem("spec.gateway.endpointPicker", message))
    auth = gateway.auth
    if auth is not None and (auth.api_keys_file is None) == (auth.api_keys_secret is None):
        message = "give one of apiKeysFile (on one machine) and apiKeysSecret (on Kubernetes), or leave auth out"
        problems.append(Problem("spec.gateway.auth", message))
    return problems


def _check_batch(spec: InferenceServiceSpec) -> list[Problem]:
    sizes = worker_sizes(spec)
    problems = []
    if sizes.max_num_seqs > sizes.max_num_batched_tokens:
        message = (
            f"{sizes.max_num_seqs} is more than spec.workers.maxNumBatchedTokens = {sizes.max_num_batched_tokens}, "
            f"but every running sequence needs one token a step; give at most {sizes.max_num_batched_tokens}"
        )
        problems.append(Problem("spec.workers.maxNumSeqs", message))
    if sizes.kv_cache_memory_bytes == 0:
        problems.append(Problem("spec.kvCache.memory", f"{spec.kv_cache.memory!r} is nothing; give 64Mi or more"))
    return problems


def _check_model_source(spec: InferenceServiceSpec) -> list[Problem]:
    model = spec.model
    problems = []
    if model.revision is not None and not model.uri.startswith("hf://"):
        message = f"{model.revision!r} has no meaning for {model.uri!r}; only hf:// models have revisions"
        problems.append(Problem("spec.model.revision", message))
    sources = {"spec.model": (model.uri, model.sha256)}
    draft = None if spec.speculative is None else spec.speculative.draft_model
    if draft is not None:
        sources["spec.speculative.draftModel"] = (draft.uri, draft.sha256)
    for path, (uri, sha256) in sources.items():
        problems += _check_source(path, uri, sha256, parse_source)
    for index, adapter in enumerate(spec.adapters):
        problems += _check_source(f"spec.adapters[{index}]", adapter.uri, adapter.sha256, parse_adapter_source)
    return problems


def _check_source(path: str, uri: str, sha256: str | None, parse: _Parse) -> list[Problem]:
    problem = _problem_of_source(uri, None, parse)
    if problem is not None:
        return [Problem(f"{path}.uri", problem)]
    problem = _problem_of_source(uri, sha256, parse)
    return [] if problem is None else [Problem(f"{path}.sha256", problem)]


def _problem_of_source(uri: str, sha256: str | None, parse: _Parse) -> str | None:
    """What is wrong with it, if it is none that could be fetched."""
    try:
        parse(uri, sha256)
    except ArtifactError as error:
        return str(error)
    return None


def _check_flow_control(spec: InferenceServiceSpec) -> list[Problem]:
    flow, path = spec.flow_control, "spec.flowControl"
    problems = []
    limits = [
        (f"{path}.maxQueuedRequestsPerTenant", flow.max_queued_requests_per_tenant, "maxQueuedRequests"),
        (f"{path}.maxQueuedTokensPerTenant", flow.max_queued_tokens_per_tenant, "maxQueuedTokens"),
    ]
    seen: set[str] = set()
    for index, tenant in enumerate(flow.tenants):
        at = f"{path}.tenants[{index}]"
        if tenant.name in seen:
            problems.append(Problem(f"{at}.name", f"{tenant.name!r} is given twice; give each tenant once"))
        seen.add(tenant.name)
        limits.append((f"{at}.maxQueuedRequests", tenant.max_queued_requests, "maxQueuedRequests"))
        limits.append((f"{at}.maxQueuedTokens", tenant.max_queued_tokens, "maxQueuedTokens"))
    totals = {"maxQueuedRequests": flow.max_queued_requests, "maxQueuedTokens": flow.max_queued_tokens}
    for field, given, total in limits:
        if given is not None and given > totals[total]:
            message = f"{given} is more than {path}.{total} = {totals[total]} for all tenants; give at most that"
            problems.append(Problem(field, message))
    if flow.tenants and spec.gateway.auth is None:
        message = "tenants are told apart by their API keys; give spec.gateway.auth, or leave tenants out"
        problems.append(Problem(f"{path}.tenants", message))
    return problems


def _check_machine(spec: InferenceServiceSpec, machine: Machine) -> list[Problem]:
    problems = _check_gpus(spec, machine) if spec.workers.device == "cuda" else []
    sizes = worker_sizes(spec)
    total_bytes = (sizes.kv_cache_memory_bytes or 0) * spec.workers.replicas
    store = kv_store_sizes(spec)
    if store is not None and total_bytes + store.memory_bytes > machine.memory_bytes:
        message = (
            f"{spec.kv_cache.cpu!r} beside the workers' {format_bytes(total_bytes)} is "
            f"{format_bytes(total_bytes + store.memory_bytes)}, but this machine has "
            f"{format_bytes(machine.memory_bytes)}; give less"
        )
        problems.append(Problem("spec.kvCache.cpu", message))
    if total_bytes > machine.memory_bytes:
        message = (
            f"{sizes.kv_cache_memory} for each of {spec.workers.replicas} workers is {format_bytes(total_bytes)}, but "
            f"this machine has {format_bytes(machine.memory_bytes)}; give less"
        )
        problems.append(Problem("spec.kvCache.memory", message))
    threads = spec.workers.threads
    if threads is not None and threads > machine.num_cores:
        message = f"{threads} is more than this machine's {machine.num_cores} cores; leave it out, or give at most that"
        problems.append(Problem("spec.workers.threads", message))
    return problems


def _check_gpus(spec: InferenceServiceSpec, machine: Machine) -> list[Problem]:
    if not machine.gpus:
        message = (
            "'cuda' needs an NVIDIA GPU, and this machine has none that may be used; check the driver (nvidia-smi) and "
            "CUDA_VISIBLE_DEVICES, or give cpu"
        )
        return [Problem("spec.workers.device", message)]
    num_gpus, replicas = len(machine.gpus), spec.workers.replicas
    if replicas > num_gpus:
        message = f"{replicas} workers need a GPU each, and this machine has {num_gpus}; give at most {num_gpus}"
        return [Problem("spec.workers.replicas", message)]
    return []
