"""Several gateways in virtual time: with each other's requests told they do what one does, without they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from shoal.gateway.routing.policies import policy_of
from shoal.simulator.mesh import MeshSettings, VirtualMesh
from shoal.simulator.replay import PolicyResult, summarize
from shoal.simulator.trace import TraceRequest
from support.traces import conversations, small_gpu

SETTINGS = MeshSettings(num_workers=4, gpu=small_gpu(2000), vocab_size=1000)


def run(trace: Sequence[TraceRequest], **changes: object) -> PolicyResult:
    mesh = VirtualMesh(trace, policy_of("shoal"), replace(SETTINGS, **changes))  # type: ignore[arg-type]
    return summarize("shoal", mesh.run())


def test_four_gateways_keep_the_hits_of_one_and_its_times() -> None:
    """Workers compute three quarters of the time."""
    trace = conversations(300, num_sessions=24, gap_ms=60.0)
    one, four = run(trace), run(trace, num_gateways=4)
    alone = run(trace, num_gateways=4, peer_delay_s=None)
    assert four.hit_ratio >= 0.97 * one.hit_ratio, (one, four)
    assert four.ttft_mean_s <= 1.25 * one.ttft_mean_s, (one, four)
    assert alone.ttft_mean_s > four.ttft_mean_s


def test_a_burst_of_one_new_prompt_over_all_gateways_is_computed_once_where_news_are_faster() -> None:
    ids = tuple(range(1, 9))
    trace = [TraceRequest(20.0 * i, 4096, 2, ids) for i in range(8)]
    results = {delay: run(trace, num_gateways=4, peer_delay_s=delay) for delay in (0.001, None)}
    assert results[0.001].predicted_hit_ratio > 0.8
    assert results[None].predicted_hit_ratio < 0.6


@pytest.mark.parametrize("num_gateways", [1, 4])
def test_several_gateways_are_deterministic_too(num_gateways: int) -> None:
    trace = conversations(60)
    assert run(trace, num_gateways=num_gateways) == run(trace, num_gateways=num_gateways)
