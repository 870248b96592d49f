"""Which groups of workers a spec asks for, and of how many pods and GPUs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.api import parse_manifest, worker_roles
from shoal.operator.api.roles import divide_replicas, gpus_per_pod, splits_evenly, world_size
from shoal.operator.api.spec import Parallelism, Ratio, Resources
from support.manifests import MINIMAL_ON_KUBERNETES, ROLES_ON_KUBERNETES

PARALLELISM = st.builds(Parallelism, tensor=st.integers(1, 64), pipeline=st.integers(1, 64), data=st.integers(1, 64))


def test_one_role_does_everything() -> None:
    (role,) = worker_roles(parse_manifest(MINIMAL_ON_KUBERNETES, "m").spec)
    assert (role.name, role.component, role.path, role.replicas) == ("both", "worker", "spec.workers", 1)
    assert (role.num_gpus, role.gpus_per_pod, role.num_pods) == (1, 0, 1)


def test_two_roles_share_by_ratio() -> None:
    prefill, decode = worker_roles(parse_manifest(ROLES_ON_KUBERNETES, "m").spec)
    assert [role.component for role in (prefill, decode)] == ["prefill", "decode"]
    assert (prefill.replicas, decode.replicas) == (2, 6)
    assert (prefill.num_gpus, prefill.gpus_per_pod, prefill.num_pods) == (4, 4, 1)
    assert (decode.num_gpus, decode.gpus_per_pod, decode.num_pods) == (16, 8, 2)


@given(st.integers(2, 64), st.integers(1, 64), st.integers(1, 64))
def test_every_worker_has_a_role_and_every_role_a_worker(total: int, prefill: int, decode: int) -> None:
    counts = divide_replicas(total, Ratio(prefill=prefill, decode=decode))
    assert sum(counts) == total
    assert min(counts) >= 1
    exact = total * prefill / (prefill + decode)
    assert abs(counts[0] - exact) <= 0.5 or 1 in counts


@given(PARALLELISM)
def test_pods_of_a_worker_are_alike(parallelism: Parallelism) -> None:
    gpus = gpus_per_pod(parallelism, Resources())
    assert 1 <= gpus <= 8
    assert splits_evenly(parallelism, gpus)
    assert world_size(parallelism) % gpus == 0
    if world_size(parallelism) <= 8:
        assert gpus == world_size(parallelism)
