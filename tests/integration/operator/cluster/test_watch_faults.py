"""Watches that expire, break or are throttled: what changed meanwhile is seen all the same."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.faulty_apiserver import faulty_apiserver
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace, running_controller

pytestmark = pytest.mark.cluster
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
# Lists would find what watches miss; these tests are about watches.
OPTIONS: dict[str, Any] = {"resync_interval_s": 300.0}


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


async def put_away(space: Namespace) -> None:
    """Somebody changes an object of the service."""
    await space.patch(STATEFUL_SET, "smol-worker", {"spec": {"replicas": 0}})


async def is_put_right(space: Namespace) -> bool:
    return bool((await space.objects("smol"))["StatefulSet", "smol-worker"]["spec"]["replicas"] == 1)


async def test_watches_that_expire_begin_anew_with_a_list(space: Namespace, tmp_path: Path) -> None:
    async with (
        faulty_apiserver(space.plane, tmp_path) as server,
        running_controller(space.plane, space.name, kubeconfig=server.kubeconfig, **OPTIONS),
    ):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        server.expires_watches = True
        server.cut_watches()
        await eventually(lambda: server.num_expired >= 3, "watches are told that they are too old (410)")
        # While no watch can be opened at all.
        await put_away(space)
        server.expires_watches = False
        await eventually(lambda: is_put_right(space), "what changed meanwhile is seen", 30)
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])


async def test_watches_that_break_go_on_where_they_were(space: Namespace, tmp_path: Path) -> None:
    async with (
        faulty_apiserver(space.plane, tmp_path) as server,
        running_controller(space.plane, space.name, kubeconfig=server.kubeconfig, **OPTIONS),
    ):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        for _ in range(3):
            server.cut_watches()
            await put_away(space)
            await eventually(lambda: is_put_right(space), "what changed meanwhile is seen", 20)


async def test_throttling_only_takes_longer(space: Namespace, tmp_path: Path) -> None:
    async with (
        faulty_apiserver(space.plane, tmp_path) as server,
        running_controller(space.plane, space.name, kubeconfig=server.kubeconfig, **OPTIONS),
    ):
        server.throttled_every = 8
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready", timeout_s=60)
        assert server.num_throttled > 1
        server.throttled_every = 0
        assert len(await space.objects("smol")) == 17


async def test_lists_find_what_watches_do_not_say(space: Namespace, tmp_path: Path) -> None:
    """They are open, and nobody would notice."""
    async with (
        faulty_apiserver(space.plane, tmp_path) as server,
        running_controller(space.plane, space.name, kubeconfig=server.kubeconfig, resync_interval_s=1.0) as controller,
    ):
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        server.silences_watches = True
        server.cut_watches()
        await eventually(lambda: server.num_silenced >= 15, "watches say nothing")
        await put_away(space)
        await eventually(lambda: is_put_right(space), "what changed meanwhile is seen")
        await space.delete(SERVICE_KIND, "smol")
        await eventually(lambda: not controller.reconciler.services, "so is what went")
        await eventually(lambda: not controller.store.of((space.name, "smol")), "with all that it owned")


async def test_lists_that_become_too_old_in_the_middle_are_whole_all_the_same(space: Namespace, tmp_path: Path) -> None:
    async with faulty_apiserver(space.plane, tmp_path) as server:
        server.expires_lists = True
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        async with running_controller(
            space.plane, space.name, kubeconfig=server.kubeconfig, resync_interval_s=0.5
        ) as controller:
            await space.until_phase("smol", "Ready")
            known, told = len(controller.store.of((space.name, "smol"))), server.num_expired_lists
            await eventually(lambda: server.num_expired_lists >= told + 3, "lists expire in the middle")
            assert len(controller.store.of((space.name, "smol"))) == known


async def test_an_operator_whose_calls_hang_is_followed_and_writes_no_more(space: Namespace, tmp_path: Path) -> None:
    """It is not refused, and no connection breaks."""
    changes: list[tuple[str, bool]] = []
    options: dict[str, Any] = {"lease_namespace": space.name, "lease_duration_s": 3.0, "resync_interval_s": 300.0}
    async with faulty_apiserver(space.plane, tmp_path) as server, contextlib.AsyncExitStack() as both:
        first = await both.enter_async_context(
            running_controller(space.plane, space.name, kubeconfig=server.kubeconfig, identity="a", **options)
        )
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        second = await both.enter_async_context(running_controller(space.plane, space.name, identity="b", **options))
        assert (first.reconciler.writes, second.reconciler.writes) == (True, False)
        server.answers.clear()
        await put_away(space)

        def has_changed() -> bool:
            changes.extend([("a", first.reconciler.writes), ("b", second.reconciler.writes)])
            return second.reconciler.writes

        await eventually(has_changed, "another operator follows")
        pairs = list(zip(changes[::2], changes[1::2], strict=True))
        assert not [pair for pair in pairs if pair[0][1] and pair[1][1]], "never both"
        await eventually(lambda: is_put_right(space), "what the first one should have done is done")
        server.answers.set()
        changed = await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 2}}})
        await space.until_phase("smol", "Ready", changed["metadata"]["generation"])
        assert (first.reconciler.writes, second.reconciler.writes) == (False, True)
