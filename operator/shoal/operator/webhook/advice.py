"""What to know of a spec that is allowed: what could not be checked, and what its workers will refuse. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.operator.api import InferenceService, ModelFacts
from shoal.operator.api.gpus import gpu_memory_bytes
from shoal.operator.api.model_rules import facts_of_config
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.spec import InferenceServiceSpec


def advise(service: InferenceService, model: ModelFacts | None = None) -> list[str]:
    """One line each. `model` as for `find_contradictions`."""
    spec = service.spec
    if model is None and spec.model.config is not None:
        model = facts_of_config(spec.model.config)
    return [*_refused_by_workers(spec), *_unchecked(spec, model), *_volumes(spec)]


def _refused_by_workers(spec: InferenceServiceSpec) -> Iterator[str]:
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
        yield f"{path}: workers of this version refuse it and do not start; leave it out to be served"


def _unchecked(spec: InferenceServiceSpec, model: ModelFacts | None) -> Iterator[str]:
    if spec.workers.device != "cuda":
        return
    if model is None:
        yield (
            f"spec.model.config: what {spec.model.name} needs of its GPUs was not checked; give it, from the model's "
            "config.json"
        )
        return
    if model.weights_in_memory(spec.model.dtype, spec.model.quantization) is None:
        yield "spec.model.config.weights: whether the weights fit was not checked; give their size, such as 16G"
        return
    for role in worker_roles(spec):
        if gpu_memory_bytes(role.resources) is None:
            yield (
                f"{role.path}.resources.gpuMemory: whether weights and KV cache fit was not checked; give it, or a "
                "gpuProduct that is known"
            )


def _volumes(spec: InferenceServiceSpec) -> Iterator[str]:
    volume = spec.kv_cache.ssd_volume
    if volume is not None and volume.host_path is not None:
        yield "spec.kvCache.ssdVolume.hostPath: only namespaces with the privileged pod security standard allow it"
