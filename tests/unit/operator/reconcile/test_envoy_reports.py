"""What operators tell each other of the Envoys that are connected to them."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.reconcile.api_client import ApiClient, ApiError
from shoal.operator.reconcile.envoy_reports import MAX_AGE_S, RENEW_S, EnvoyReports
from shoal.operator.reconcile.routes import RoutesState

SMOL = "models/smol"
REFUSING = {SMOL: RoutesState(2, "malformed IP address", 1)}


class OneLease(ApiClient):
    """The API server, as far as that Lease goes."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.num_writes = 0

    async def request(self, method: str, path: str, body: Any = None, **_: Any) -> Manifest:
        """With resource versions, as the real one."""
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/system/leases")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no such lease")
            return self.lease
        known = "" if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if body["metadata"].get("resourceVersion", "") != known:
            raise ApiError(409, "Conflict", "another version")
        self.num_writes += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.num_writes)}}
        return self.lease


class Operators:
    """Some of them, with one clock."""

    def __init__(self) -> None:
        self.api, self.now_s = OneLease(), 1000.0
        self.changed: list[str] = []

    def operator(self, identity: str) -> EnvoyReports:
        return EnvoyReports(self.api, "system", identity, on_change=self.changed.append, now_unix_s=lambda: self.now_s)


@pytest.fixture
def operators() -> Operators:
    return Operators()


async def test_who_writes_the_status_knows_of_the_others_envoys(operators: Operators) -> None:
    writer, other, third = (operators.operator(name) for name in "abc")
    await writer.exchange({SMOL: RoutesState(5)}, is_writer=True)
    assert writer.of_others(SMOL) == RoutesState()
    await other.exchange(REFUSING, is_writer=False)
    await third.exchange({SMOL: RoutesState(1), "models/x": RoutesState(4)}, is_writer=False)
    await writer.exchange({}, is_writer=True)
    assert writer.of_others(SMOL) == RoutesState(3, "malformed IP address", 1)
    assert writer.of_others("models/x") == RoutesState(4)
    assert sorted(operators.changed) == [SMOL, "models/x"]
    operators.changed.clear()
    await other.exchange({SMOL: RoutesState(2)}, is_writer=False)
    await writer.exchange({}, is_writer=True)
    assert writer.of_others(SMOL) == RoutesState(3)
    assert operators.changed == [SMOL]


async def test_reports_are_renewed_and_those_of_the_dead_do_not_count(operators: Operators) -> None:
    writer, other, third = (operators.operator(name) for name in "abc")
    await other.exchange(REFUSING, is_writer=False)
    await other.exchange(REFUSING, is_writer=False)
    assert operators.api.num_writes == 1, "it has nothing else to tell"
    operators.now_s += RENEW_S
    await other.exchange(REFUSING, is_writer=False)
    assert operators.api.num_writes == 2
    operators.now_s += MAX_AGE_S + 1
    await writer.exchange({}, is_writer=True)
    assert writer.of_others(SMOL) == RoutesState()
    await third.exchange({SMOL: RoutesState(1)}, is_writer=False)
    assert operators.api.lease is not None
    assert len(operators.api.lease["metadata"]["annotations"]) == 1, "and go with the next one"


async def test_who_becomes_the_writer_does_not_count_itself_twice(operators: Operators) -> None:
    heir = operators.operator("b")
    await heir.exchange({SMOL: RoutesState(2)}, is_writer=False)
    await heir.exchange({SMOL: RoutesState(2)}, is_writer=True)
    assert heir.of_others(SMOL) == RoutesState()


async def test_one_that_was_overtaken_tells_again_and_nonsense_is_passed_over(operators: Operators) -> None:
    writer, other = operators.operator("a"), operators.operator("b")
    await other.exchange(REFUSING, is_writer=False)
    assert operators.api.lease is not None
    stale = dict(operators.api.lease, metadata={**operators.api.lease["metadata"], "resourceVersion": "0"})
    operators.api.lease = stale
    real = operators.api.request

    async def overtaken(method: str, path: str, body: Any = None, **more: Any) -> Manifest:
        if method == "PUT":
            raise ApiError(409, "Conflict", "another version")
        return await real(method, path, body, **more)

    operators.api.request = overtaken  # type: ignore[method-assign]
    await other.exchange({SMOL: RoutesState(7)}, is_writer=False)
    operators.api.request = real  # type: ignore[method-assign]
    operators.api.lease["metadata"]["annotations"]["envoys.shoal.dev/0"] = '{"of": "another version"}'
    await other.exchange({SMOL: RoutesState(7)}, is_writer=False)
    await writer.exchange({}, is_writer=True)
    assert writer.of_others(SMOL) == RoutesState(7)


async def test_a_report_stays_small_and_what_is_wrong_comes_first(operators: Operators) -> None:
    many = {f"models/{index}": RoutesState(1, "no" * 500 if index == 4999 else "") for index in range(5000)}
    writer, other = operators.operator("a"), operators.operator("b")
    await other.exchange(many, is_writer=False)
    assert operators.api.lease is not None
    [text] = operators.api.lease["metadata"]["annotations"].values()
    assert len(text) < 64 << 10
    await writer.exchange({}, is_writer=True)
    assert writer.of_others("models/4999").rejection == "no" * 150
