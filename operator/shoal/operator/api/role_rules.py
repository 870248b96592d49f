"""Rules over roles and parallelism: which sections go together, and how GPUs divide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shoal.operator.api.problems import Problem
from shoal.operator.api.roles import WorkerRole, splits_evenly, worker_roles, world_size
from shoal.operator.api.spec import InferenceServiceSpec, Resources

MAX_GPUS_PER_WORKER: Final = 512


def find_role_contradictions(spec: InferenceServiceSpec) -> list[Problem]:
    """Everything that needs no model and no machine."""
    problems = _check_pair(spec) + _check_shared(spec) + _check_replicas(spec)
    for role in worker_roles(spec):
        problems += _check_device(spec, role) or _check_split(role)
    return problems


def _check_pair(spec: InferenceServiceSpec) -> list[Problem]:
    problems = []
    for name, other in (("prefill", "decode"), ("decode", "prefill")):
        if getattr(spec, name) is not None and getattr(spec, other) is None:
            message = f"needs spec.{other}, since neither role serves alone; give both, or leave it out"
            problems.append(Problem(f"spec.{name}", message))
    if spec.ratio is not None and (spec.prefill is None or spec.decode is None):
        message = "divides workers between spec.prefill and spec.decode; give both, or leave it out"
        problems.append(Problem("spec.ratio", message))
    return problems


def _check_shared(spec: InferenceServiceSpec) -> list[Problem]:
    """With roles, `workers` has no parallelism and no resources of its own."""
    if spec.prefill is None and spec.decode is None:
        return []
    problems = []
    message = "has no meaning beside spec.prefill and spec.decode; give it there, for each"
    if spec.workers.parallelism is not None:
        problems.append(Problem("spec.workers.parallelism", message))
    if spec.workers.resources != Resources():
        problems.append(Problem("spec.workers.resources", message))
    return problems


def _check_replicas(spec: InferenceServiceSpec) -> list[Problem]:
    if spec.prefill is None or spec.decode is None:
        return []
    total, problems = spec.workers.replicas, []
    if spec.ratio is None:
        if total != 1:
            message = (
                f"{total} has no meaning beside spec.prefill and spec.decode; give their replicas, or spec.ratio, which"
                " divides it"
            )
            problems.append(Problem("spec.workers.replicas", message))
        return problems
    for name, role in (("prefill", spec.prefill), ("decode", spec.decode)):
        if role.replicas is not None:
            message = f"{role.replicas} has no meaning beside spec.ratio, which divides spec.workers.replicas = {total}"
            problems.append(Problem(f"spec.{name}.replicas", f"{message}; leave one of them out"))
    if total < 2:
        whole = spec.ratio.prefill + spec.ratio.decode
        message = f"{total} cannot be divided between two roles; give at least 2, best a multiple of {whole}"
        problems.append(Problem("spec.workers.replicas", message))
    return problems


def _check_device(spec: InferenceServiceSpec, role: WorkerRole) -> list[Problem]:
    """What only GPUs have."""
    device = spec.workers.device
    if device == "cuda":
        return []
    problems = []
    message = f"has no meaning for spec.workers.device = {device}; leave it out, or give cuda"
    if world_size(role.parallelism) > 1 or role.parallelism.expert > 1:
        problems.append(Problem(f"{role.path}.parallelism", message))
    resources = role.resources
    given = {"gpus": resources.gpus, "gpuProduct": resources.gpu_product, "gpuMemory": resources.gpu_memory}
    problems += [
        Problem(f"{role.path}.resources.{name}", message) for name, value in given.items() if value is not None
    ]
    return problems


def _check_split(role: WorkerRole) -> list[Problem]:
    """GPUs of a worker, of its pods, and of its experts."""
    parallelism, gpus, total = role.parallelism, role.resources.gpus, role.num_gpus
    product = f"tensor x pipeline x data = {parallelism.tensor} x {parallelism.pipeline} x {parallelism.data}"
    problems = []
    if total > MAX_GPUS_PER_WORKER:
        message = f"{product} is {total} GPUs for one worker; give at most {MAX_GPUS_PER_WORKER}, and more replicas"
        problems.append(Problem(f"{role.path}.parallelism", message))
    elif gpus is not None and not splits_evenly(parallelism, gpus):
        fitting = [count for count in _divisors(total) if splits_evenly(parallelism, count)]
        message = f"pods of {gpus} GPUs do not make up a worker of {total} ({product}); give {one_of(fitting)}"
        problems.append(Problem(f"{role.path}.resources.gpus", message))
    sharing = parallelism.tensor * parallelism.data
    if sharing % parallelism.expert:
        message = (
            f"{parallelism.expert} does not divide the {sharing} GPUs of tensor x data that share experts; give "
            f"{one_of(_divisors(sharing))}"
        )
        problems.append(Problem(f"{role.path}.parallelism.expert", message))
    return problems


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def one_of(values: Iterable[int], most: int = 64) -> str:
    """`1, 2 or 4`, of those that a field could take."""
    texts = [str(value) for value in values if value <= most]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
