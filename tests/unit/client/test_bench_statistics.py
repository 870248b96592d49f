from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.bench.records import Record
from shoal.client.bench.statistics import distribution, meets, summarize

# Request A: sent at 0, five tokens in three chunks at 1, 2 and 4. Request B: sent at 1, one token at 4.
A = Record(start_s=0, end_s=4.5, output_times_s=(1, 2, 4), prompt_tokens=10, output_tokens=5, cached_tokens=8)
B = Record(start_s=1, end_s=5, output_times_s=(4,), prompt_tokens=20, output_tokens=1)
FAILED = Record(start_s=2, end_s=10, error_code="UNAVAILABLE")


def test_one_request_by_hand() -> None:
    assert (A.ttft_s, A.e2e_s, A.gaps_s) == (1, 4, (1, 2))
    assert A.itl_s == 1.5
    assert A.tpot_s == 0.75
    assert (B.ttft_s, B.e2e_s, B.itl_s, B.tpot_s) == (3, 3, None, None)
    assert (FAILED.ttft_s, FAILED.e2e_s, FAILED.tpot_s) == (None, None, None)


def test_a_run_by_hand() -> None:
    summary = summarize([A, B, FAILED], {"ttft": 2.0})
    assert summary.duration_s == 10
    assert (summary.completed, summary.errors) == (2, {"UNAVAILABLE": 1})
    assert (summary.prompt_tokens, summary.output_tokens, summary.cached_tokens) == (30, 6, 8)
    assert summary.requests_per_s == 0.2
    assert summary.output_tokens_per_s == 0.6
    assert summary.total_tokens_per_s == 3.6
    assert summary.goodput_requests_per_s == 0.1
    assert summary.ttft_s is not None
    assert (summary.ttft_s.mean, summary.ttft_s.p50, summary.ttft_s.count) == (2, 2, 2)
    assert summary.ttft_s.p90 == pytest.approx(2.8)
    assert summary.ttft_s.p99 == pytest.approx(2.98)
    assert summary.itl_s is not None
    assert (summary.itl_s.mean, summary.itl_s.count) == (1.5, 2)
    assert summary.tpot_s is not None
    assert (summary.tpot_s.mean, summary.tpot_s.count) == (0.75, 1)
    assert summary.e2e_s is not None
    assert summary.e2e_s.mean == 3.5


def test_a_run_of_nothing_but_errors_divides_by_nothing() -> None:
    summary = summarize([Record(start_s=1, end_s=1, error_code="INTERNAL")])
    assert (summary.requests_per_s, summary.ttft_s, summary.goodput_requests_per_s) == (0, None, None)
    assert summarize([]).completed == 0


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ({"ttft": 1.0}, True),
        ({"ttft": 0.99}, False),
        ({"itl": 1.5, "tpot": 0.75, "e2e": 4}, True),
        ({"itl": 1.4}, False),
        ({"ttft": 1.0, "e2e": 3}, False),
    ],
)
def test_objectives_must_all_be_met(slo: dict[str, float], expected: bool) -> None:
    assert meets(A, slo) is expected


def test_a_request_without_the_metric_meets_its_objective() -> None:
    assert meets(B, {"itl": 0.001, "tpot": 0.001})


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_percentiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    result = distribution(values)
    assert result is not None
    assert min(values) <= result.p50 <= result.p90 <= result.p99 <= max(values)
    assert result.count == len(values)
    assert result.p50 == pytest.approx(sorted(values)[len(values) // 2]) or len(values) % 2 == 0


@given(
    st.lists(
        st.lists(st.floats(0.001, 10), min_size=1, max_size=20),
        min_size=1,
        max_size=10,
    )
)
def test_token_times_add_up(requests: list[list[float]]) -> None:
    records = []
    for gaps in requests:
        times = [sum(gaps[: i + 1]) for i in range(len(gaps))]
        records.append(Record(start_s=0, end_s=times[-1], output_times_s=tuple(times), output_tokens=len(times)))
    for record in records:
        ttft_s, tpot_s, e2e_s = record.ttft_s, record.tpot_s, record.e2e_s
        assert ttft_s is not None
        assert e2e_s is not None
        assert e2e_s == pytest.approx(ttft_s + (tpot_s or 0) * (record.output_tokens - 1))
        assert record.itl_s == pytest.approx(tpot_s)
    summary = summarize(records)
    assert summary.output_tokens_per_s * summary.duration_s == pytest.approx(sum(map(len, requests)))
