"""What one machine cannot do, refused by `shoal up` rather than passed over."""

from __future__ import annotations

from typing import Final

from shoal.operator.api.problems import Problem
from shoal.operator.api.roles import worker_roles
from shoal.operator.api.spec import Gateway, GatewayService, InferenceServiceSpec, Rollout

_KUBERNETES_ONLY: Final = "needs Kubernetes; leave it out on one machine"
_NOT_YET: Final = "is not possible with this version's workers; leave it out"


def find_local_contradictions(spec: InferenceServiceSpec) -> list[Problem]:
    """Everything that needs other machines, or an engine that can do more."""
    return _check_engine(spec) + _check_kubernetes(spec) + _check_gateway(spec.gateway)


def _check_engine(spec: InferenceServiceSpec) -> list[Problem]:
    problems = []
    if spec.prefill is not None or spec.decode is not None:
        message = "one machine has workers that both prefill and decode; leave it out"
        problems += [
            Problem(f"spec.{name}", message) for name in ("prefill", "decode") if getattr(spec, name) is not None
        ]
    for role in worker_roles(spec):
        if role.num_gpus > 1 or role.parallelism.expert > 1:
            message = f"{role.num_gpus} GPUs for one worker are {_NOT_YET.removeprefix('is ')}"
            problems.append(Problem(f"{role.path}.parallelism", message))
        if role.resources.gpus is not None and role.resources.gpus > 1:
            problems.append(Problem(f"{role.path}.resources.gpus", f"{role.resources.gpus} {_KUBERNETES_ONLY}"))
    if spec.model.quantization not in ("auto", "none"):
        problems.append(Problem("spec.model.quantization", f"{spec.model.quantization} {_NOT_YET}"))
    if spec.adapters:
        problems.append(Problem("spec.adapters", f"serving adapters {_NOT_YET}"))
    if spec.speculative is not None:
        problems.append(Problem("spec.speculative", f"{spec.speculative.method} {_NOT_YET}"))
    return problems


def _check_kubernetes(spec: InferenceServiceSpec) -> list[Problem]:
    given = {
        "spec.kvCache.placement": spec.kv_cache.placement != "Pod",
        "spec.kvCache.peersSecret": spec.kv_cache.peers_secret is not None,
        "spec.kvCache.ssdVolume": spec.kv_cache.ssd_volume is not None,
        "spec.workers.resources.gpuProduct": spec.workers.resources.gpu_product is not None,
        "spec.slo": spec.slo is not None,
        "spec.autoscaling": spec.autoscaling is not None,
        "spec.rollout": spec.rollout != Rollout(),
        "spec.deletionPolicy": spec.deletion_policy != "Delete",
        "spec.imagePullSecrets": spec.image_pull_secrets != (),
        "spec.podTemplate": spec.pod_template is not None,
        "spec.paused": spec.paused,
    }
    return [Problem(path, _KUBERNETES_ONLY) for path, is_given in given.items() if is_given]


def _check_gateway(gateway: Gateway) -> list[Problem]:
    given = {
        "spec.gateway.grpc.port": gateway.grpc.port is not None,
        "spec.gateway.http.port": gateway.http.port is not None,
        "spec.gateway.http.enabled": not gateway.http.enabled,
        "spec.gateway.service": gateway.service != GatewayService(),
    }
    problems = [Problem(path, _KUBERNETES_ONLY) for path, is_given in given.items() if is_given]
    if gateway.auth is not None and gateway.auth.api_keys_secret is not None:
        message = "one machine has no Secrets; give spec.gateway.auth.apiKeysFile"
        problems.append(Problem("spec.gateway.auth.apiKeysSecret", message))
    return problems
