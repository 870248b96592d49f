"""An operator that dies at any write of its way, before it is carried out or before the answer: the next one gets to
the same objects. On an API server in memory, so that every step can be tried; some are with a real one as well."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import structlog.testing

from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Manifest, Platform
from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.reconcile.controller import Controller
from support.failing_api_client import LOST, NUM_WRITES
from support.fake_api import FakeApi
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

KEY = ("models", "smol")
MAX_ROUNDS = 20
Step = Callable[[FakeApi], object]


def manifest(**fields: Any) -> Manifest:
    """Of the service."""
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    return with_fields(MINIMAL_ON_KUBERNETES, {"metadata.namespace": "models", **changed})


def ask_for(**fields: Any) -> Step:
    """Somebody wants that of the service."""
    return lambda api: api.put(manifest(**fields))


TWO_ROLES: dict[str, Any] = {
    "spec__workers": {"device": "cuda"},
    "spec__prefill": {"replicas": 1, "resources": {"gpus": 1}},
    "spec__decode": {"replicas": 1, "resources": {"gpus": 1}},
}
OTHER_MODEL = {"name": "smol", "uri": "hf://org/other"}
# What there was before, and what somebody asks for then.
WAYS: dict[str, tuple[Step | None, Step]] = {
    "new": (None, ask_for()),
    "scaled": (ask_for(), ask_for(spec__workers={"replicas": 3}, spec__tokenizer={"replicas": 2})),
    "pruned": (
        ask_for(spec__kvCache={"cpu": "1Gi", "placement": "Node"}, spec__autoscaling={"maxReplicas": 4}),
        ask_for(),
    ),
    "other model": (ask_for(), ask_for(spec__model=OTHER_MODEL)),
    "recreated": (ask_for(), ask_for(spec__model=OTHER_MODEL, spec__rollout={"strategy": "Recreate"})),
    "two roles": (ask_for(), ask_for(**TWO_ROLES)),
    "one role": (ask_for(**TWO_ROLES), ask_for()),
    "orphaned": (ask_for(), ask_for(spec__deletionPolicy="Orphan")),
}


def make_ready(api: FakeApi) -> None:
    """What Kubernetes' controllers and kubelets would do at once."""
    for where, found in list(api.objects.items()):
        if where[0] in ("statefulsets", "deployments", "leaderworkersets"):
            replicas, generation = found["spec"].get("replicas", 1), found["metadata"]["generation"]
            counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), replicas)
            api.put({**found, "status": {**counts, "observedGeneration": generation}})


async def settle(api: FakeApi) -> None:
    """One operator, from its start until it has nothing more to do."""
    controller = Controller(api, Platform(apis=OPTIONAL_APIS))
    await controller.relist()
    api.observer = controller.inventory
    for _ in range(MAX_ROUNDS):
        before = api.version
        await controller.reconciler.reconcile(KEY)
        make_ready(api)
        if api.version == before:
            return
    raise AssertionError(f"it goes on writing: {api.writes[-5:]}")


@functools.cache
def _begun() -> dict[str, FakeApi]:
    return {}


async def begin(way: str) -> FakeApi:
    """An API server of its own."""
    if way not in _begun():
        api, (before, step) = FakeApi(), WAYS[way]
        if before is not None:
            before(api)
            await settle(api)
            api.observer = None
        step(api)
        _begun()[way] = api
    api = FakeApi(_begun()[way])
    api.objects, api._versions = copy.deepcopy(api.objects), list(api._versions)
    return api


def die_at(api: FakeApi, write: int, *, after: bool) -> None:
    """From that write on nothing gets through, or no answer comes back."""

    def fail(method: str, path: str) -> None:
        # `writes` has this one already when its answer is on the way.
        if method != "GET" and len(api.writes) + (not after) >= write:
            raise LOST

    if after:
        api.after = fail
    else:
        api.before = fail


def result(api: FakeApi) -> dict[Any, Manifest]:
    """All that there is, but what differs from one time to the next."""
    changing = ("uid", "resourceVersion", "generation", "ownerReferences")
    found = {}
    for where, each in api.objects.items():
        metadata = {name: value for name, value in each["metadata"].items() if name not in changing}
        metadata["has_owner"] = bool(each["metadata"].get("ownerReferences"))
        content = {name: value for name, value in each.items() if name != "status"}
        found[where] = {**content, "metadata": metadata}
    return found


@functools.cache
def _expected() -> dict[str, tuple[dict[Any, Manifest], int]]:
    return {}


async def expected(way: str) -> tuple[dict[Any, Manifest], int]:
    """What an operator that nobody disturbs gets to, and by how many writes."""
    if way not in _expected():
        api = await begin(way)
        await settle(api)
        _expected()[way] = result(api), len(api.writes)
    return _expected()[way]


async def test_the_first_reconcile_has_as_many_writes_as_are_tried_with_a_real_server() -> None:
    api = await begin("new")
    controller = Controller(api, Platform())
    await controller.relist()
    await controller.reconciler.reconcile(KEY)
    assert len(api.writes) == NUM_WRITES


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.exhaustive), 7])
async def test_killed_at_any_write_another_operator_gets_there(way: str, after: bool, step: int) -> None:
    """Each of them, or some from the first to the last."""
    with structlog.testing.capture_logs():
        wanted, num_writes = await expected(way)
        assert num_writes > 3
        for write in {*range(1, num_writes + 1, step), num_writes}:
            api = await begin(way)
            die_at(api, write, after=after)
            with contextlib.suppress(ApiError):
                await settle(api)
            assert len(api.writes) < num_writes + after, f"it did not die at write {write}"
            api.before = api.after = lambda method, path: None
            await settle(api)
            assert result(api) == wanted, f"killed at write {write}"
            assert "status" in api.objects["inferenceservices", *KEY]
