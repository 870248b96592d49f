"""Which groups of workers a spec asks for: one that does everything, or one that prefills and one that decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from shoal.operator.api.spec import InferenceServiceSpec, Parallelism, Ratio, Resources, RoleWorkers, Workers

RoleName = Literal["both", "prefill", "decode"]
MAX_GPUS_PER_NODE: Final = 8
"""What pods are given at most where the spec does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRole:
    """Workers that are alike."""

    name: RoleName
    path: str
    """Where the spec has them: `spec.workers`, `spec.prefill` or `spec.decode`."""
    replicas: int
    """Engines, each of `num_pods` pods."""
    parallelism: Parallelism
    resources: Resources
    gpus_per_pod: int
    """0 where the device is no GPU."""

    @property
    def component(self) -> str:
        """`worker`, `prefill` or `decode`: what names and labels have."""
        return "worker" if self.name == "both" else self.name

    @property
    def num_gpus(self) -> int:
        """Of one engine, were it on GPUs."""
        return world_size(self.parallelism)

    @property
    def num_pods(self) -> int:
        """Of one engine."""
        return max(1, self.num_gpus // self.gpus_per_pod) if self.gpus_per_pod else 1


def worker_roles(spec: InferenceServiceSpec) -> tuple[WorkerRole, ...]:
    """`both` alone, or `prefill` and `decode` in this order. The spec may have contradictions."""
    on_gpu = spec.workers.device == "cuda"
    asked: list[tuple[RoleName, str, int, Workers | RoleWorkers]]
    if spec.prefill is None or spec.decode is None:
        asked = [("both", "spec.workers", spec.workers.replicas, spec.workers)]
    else:
        num_prefill, num_decode = spec.prefill.replicas or 1, spec.decode.replicas or 1
        if spec.ratio is not None:
            num_prefill, num_decode = divide_replicas(spec.workers.replicas, spec.ratio)
        asked = [
            ("prefill", "spec.prefill", num_prefill, spec.prefill),
            ("decode", "spec.decode", num_decode, spec.decode),
        ]
    return tuple(
        WorkerRole(
            name=name,
            path=path,
            replicas=replicas,
            parallelism=section.parallelism or Parallelism(),
            resources=section.resources,
            gpus_per_pod=gpus_per_pod(section.parallelism or Parallelism(), section.resources) if on_gpu else 0,
        )
        for name, path, replicas, section in asked
    )


def world_size(parallelism: Parallelism) -> int:
    """GPUs of one worker."""
    return parallelism.tensor * parallelism.pipeline * parallelism.data


def gpus_per_pod(parallelism: Parallelism, resources: Resources) -> int:
    """As asked; otherwise all of a worker, as far as 8 go and pods are alike."""
    if resources.gpus is not None:
        return resources.gpus
    total = world_size(parallelism)
    fitting = (count for count in range(min(total, MAX_GPUS_PER_NODE), 0, -1) if splits_evenly(parallelism, count))
    return next(fitting, 1)


def splits_evenly(parallelism: Parallelism, gpus: int) -> bool:
    """Whether pods of `gpus` make a worker in which each layer's GPUs are together, or fill pods of their own."""
    tensor, total = parallelism.tensor, world_size(parallelism)
    return total % gpus == 0 and (gpus % tensor == 0 or tensor % gpus == 0)


def divide_replicas(total: int, ratio: Ratio) -> tuple[int, int]:
    """Prefill and decode, as near to `ratio` as `total` allows, and one of each at least."""
    num_prefill = round(total * ratio.prefill / (ratio.prefill + ratio.decode))
    num_prefill = min(max(num_prefill, 1), max(total - 1, 1))
    return num_prefill, max(total - num_prefill, 1)
