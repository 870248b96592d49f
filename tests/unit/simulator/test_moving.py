"""Moves by choice in virtual time: a worker stands still, others go on with its requests, token for token."""

from __future__ import annotations

import math
from dataclasses import replace

from shoal.gateway.routing.policies import policy_of
from shoal.simulator.mesh import MeshRun, MeshSettings, VirtualMesh
from shoal.simulator.moving import Slowdown
from support.traces import conversations, small_gpu

SETTINGS = MeshSettings(num_workers=4, gpu=small_gpu(2000), vocab_size=1000, rebalance=True)
TRACE = conversations(250, num_sessions=24, gap_ms=120.0)
STANDSTILL = tuple(Slowdown(worker, from_s=5.0 + worker, until_s=35.0, factor=math.inf) for worker in (0, 2))


def run(**changes: object) -> MeshRun:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return VirtualMesh(TRACE, policy_of("shoal"), settings, keep_tokens=True).run()


def longest_s(run: MeshRun) -> float:
    """From arrival to the last token."""
    return max(record.end_s - record.arrival_s for record in run.records)


def test_what_a_worker_that_stands_still_has_is_served_in_time_and_unchanged() -> None:
    calm = run(rebalance=False, num_gateways=3)
    stuck = run(rebalance=False, num_gateways=3, slowdowns=STANDSTILL)
    moved = run(num_gateways=3, slowdowns=STANDSTILL)
    assert moved.num_moves > 0
    assert [record.token_ids for record in moved.records] == [record.token_ids for record in calm.records]
    assert longest_s(moved) < 0.5 * longest_s(stuck)


def test_a_calm_mesh_is_left_alone() -> None:
    assert run().num_moves == 0
