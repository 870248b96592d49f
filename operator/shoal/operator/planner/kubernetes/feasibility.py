"""What a manifest may say and this cluster, or this version, cannot do: refused before anything is planned."""

from __future__ import annotations

from shoal.operator.api import InferenceService, Problem
from shoal.operator.api.roles import worker_roles
from shoal.operator.planner.kubernetes.platform import Platform
from shoal.operator.planner.kubernetes.scaling import KEDA_API
from shoal.operator.planner.kubernetes.workers import LWS_API


def find_infeasible(service: InferenceService, platform: Platform) -> list[Problem]:
    """Every such field. What is left can be planned for this cluster."""
    spec, problems = service.spec, []
    for role in worker_roles(spec):
        if role.num_pods > 1 and LWS_API not in platform.apis:
            message = (
                f"{role.num_gpus} GPUs at {role.gpus_per_pod} a pod make a worker of {role.num_pods} pods, which takes "
                f"LeaderWorkerSet ({LWS_API}), and this cluster does not have it; install that, or give parallelism "
                "that fits one pod"
            )
            problems.append(Problem(f"{role.path}.parallelism", message))
    if spec.autoscaling is not None and spec.autoscaling.engine == "keda" and KEDA_API not in platform.apis:
        message = f"'keda' takes KEDA ({KEDA_API}), and this cluster does not have it; install that, or give hpa"
        problems.append(Problem("spec.autoscaling.engine", message))
    return problems
