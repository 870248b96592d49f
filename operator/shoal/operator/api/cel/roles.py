"""The rules of `role_rules.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from shoal.operator.api.cel.rule import Rule, given
from shoal.operator.api.role_rules import MAX_GPUS_PER_WORKER

ROLE_PATHS: Final = ("spec.workers", "spec.prefill", "spec.decode")
_ROLES: Final = "(has(self.spec.prefill) && has(self.spec.decode))"
_ANY_ROLE: Final = "(has(self.spec.prefill) || has(self.spec.decode))"
_BESIDE: Final = "'has no meaning beside spec.prefill and spec.decode; give it there, for each'"
_RESOURCES: Final = ("cpu", "memory", "gpus", "gpuProduct", "gpuMemory")
_NO_GPU: Final = (
    "'has no meaning for spec.workers.device = ' + self.spec.workers.device + '; leave it out, or give cuda'"
)


def _of_role(path: str) -> Iterator[Rule]:
    parallelism, resources = f"self.{path}.parallelism", f"{path}.resources"
    has_parallelism = given(f"{path}.parallelism")
    world = f"({parallelism}.tensor * {parallelism}.pipeline * {parallelism}.data)"
    default_world = f"({has_parallelism} ? {world} : 1)"
    tensor = f"({has_parallelism} ? {parallelism}.tensor : 1)"
    sharing = f"({parallelism}.tensor * {parallelism}.data)"
    on_gpu = "self.spec.workers.device == 'cuda'"
    yield Rule(
        f"{on_gpu} || !({has_parallelism}) || ({world} == 1 && {parallelism}.expert == 1)",
        _NO_GPU,
        f"{path}.parallelism",
    )
    for name in ("gpus", "gpuProduct", "gpuMemory"):
        yield Rule(f"{on_gpu} || !({given(f'{resources}.{name}')})", _NO_GPU, f"{resources}.{name}")
    yield Rule(
        f"!({has_parallelism}) || {world} <= {MAX_GPUS_PER_WORKER}",
        f"'tensor x pipeline x data is more than {MAX_GPUS_PER_WORKER} GPUs for one worker; give less, "
        "and more replicas'",
        f"{path}.parallelism",
    )
    gpus = f"self.{resources}.gpus"
    yield Rule(
        f"!({given(f'{resources}.gpus')}) || !({on_gpu}) || {default_world} > {MAX_GPUS_PER_WORKER} || "
        f"({default_world} % {gpus} == 0 && ({gpus} % {tensor} == 0 || {tensor} % {gpus} == 0))",
        "'pods of so many GPUs do not make up a worker of tensor x pipeline x data; give a divisor of that, and of "
        "tensor or a multiple of it'",
        f"{resources}.gpus",
    )
    yield Rule(
        f"!({has_parallelism}) || !({on_gpu}) || {sharing} % {parallelism}.expert == 0",
        "'does not divide the GPUs of tensor x data that share experts; give a divisor of that'",
        f"{path}.parallelism.expert",
    )


ROLE_RULES: Final = (
    *(
        Rule(
            f"!has(self.spec.{name}) || has(self.spec.{other})",
            f"'needs spec.{other}, since neither role serves alone; give both, or leave it out'",
            f"spec.{name}",
        )
        for name, other in (("prefill", "decode"), ("decode", "prefill"))
    ),
    Rule(
        f"!has(self.spec.ratio) || {_ROLES}",
        "'divides workers between spec.prefill and spec.decode; give both, or leave it out'",
        "spec.ratio",
    ),
    Rule(f"!has(self.spec.workers.parallelism) || !{_ANY_ROLE}", _BESIDE, "spec.workers.parallelism"),
    Rule(
        f"!{_ANY_ROLE} || !({' || '.join(f'has(self.spec.workers.resources.{name})' for name in _RESOURCES)})",
        _BESIDE,
        "spec.workers.resources",
    ),
    Rule(
        f"!{_ROLES} || has(self.spec.ratio) || self.spec.workers.replicas == 1",
        "'has no meaning beside spec.prefill and spec.decode; give their replicas, or spec.ratio, which divides it'",
        "spec.workers.replicas",
    ),
    Rule(
        f"!{_ROLES} || !has(self.spec.ratio) || self.spec.workers.replicas >= 2",
        "'cannot be divided between two roles; give at least 2, best a multiple of both parts of spec.ratio together'",
        "spec.workers.replicas",
    ),
    *(
        Rule(
            f"!{_ROLES} || !has(self.spec.ratio) || !has(self.spec.{name}.replicas)",
            "'has no meaning beside spec.ratio, which divides spec.workers.replicas; leave one of them out'",
            f"spec.{name}.replicas",
        )
        for name in ("prefill", "decode")
    ),
    *(rule for path in ROLE_PATHS for rule in _of_role(path)),
)
