"""What to know of a spec that is allowed: what could not be checked, and what its workers will refuse. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.operator.api import InferenceService, ModelFacts, Problem
from shoal.operator.api.gpus import gpu_memory_bytes
from shoal.operator.api.model_rules import facts_of_config
from shoal.operator.api.pod_rules import advise_on_pods
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.spec import InferenceServiceSpec


def advise(service: InferenceService, model: ModelFacts | None = None, *, on_kubernetes: bool = True) -> list[Problem]:
    """`model` as for `find_contradictions`. on_kubernetes: also what only clusters have."""
    spec = service.spec
    if model is None and spec.model.config is not None:
        model = facts_of_config(spec.model.config)
    advice = [*_refused_by_workers(spec), *_unchecked(spec, model)]
    return [*advice, *_volumes(spec), *advise_on_pods(spec)] if on_kubernetes else advice


def _refused_by_workers(spec: InferenceServiceSpec) -> Iterator[Problem]:
    """Planned for engines to come."""
    asked = {
        "spec.model.quantization": spec.model.quantization not in ("auto", "none"),
        "spec.prefill": spec.prefill is not None,
        "spec.adapters": bool(spec.adapters),
        "spec.speculative": spec.speculative is not None,
    }
    for role in worker_roles(spec):
        asked[f"{role.path}.parallelism"] = role.num_gpus > 1 or role.parallelism.expert > 1
    for path in (path for path, is_asked in asked.items() if is_asked):
        yield Problem(path, "workers of this version refuse it and do not start; leave it out to be served")


def _unchecked(spec: InferenceServiceSpec, model: ModelFacts | None) -> Iterator[Problem]:
    if spec.workers.device != "cuda":
        return
    if model is None:
        message = f"what {spec.model.name} needs of its GPUs was not checked; give it, from the model's config.json"
        yield Problem("spec.model.config", message)
        return
    if model.weights_in_memory(spec.model.dtype, spec.model.quantization) is None:
        message = "whether the weights fit was not checked; give their size, such as 16G"
        yield Problem("spec.model.config.weights", message)
        return
    for role in worker_roles(spec):
        if gpu_memory_bytes(role.resources) is None:
            message = "whether weights and KV cache fit was not checked; give it, or a gpuProduct that is known"
            yield Problem(f"{role.path}.resources.gpuMemory", message)


def _volumes(spec: InferenceServiceSpec) -> Iterator[Problem]:
    volume = spec.kv_cache.ssd_volume
    message = "only namespaces with the privileged pod security standard allow it"
    if volume is not None and volume.host_path is not None:
        yield Problem("spec.kvCache.ssdVolume.hostPath", message)
    elif spec.kv_cache.placement == "Node":
        yield Problem("spec.kvCache.placement", f"Node takes a folder of each node; {message}")
