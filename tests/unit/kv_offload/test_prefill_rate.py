from __future__ import annotations

import pytest

from shoal.model_worker.kv_offload.prefill_rate import PrefillRate


def test_the_first_step_replaces_the_guess() -> None:
    rate = PrefillRate(500.0)
    assert rate.tokens_per_s == 500.0
    rate.observe(8192, 0.2)
    assert rate.tokens_per_s == pytest.approx(40_960)


def test_steps_that_mostly_decode_say_nothing() -> None:
    rate = PrefillRate(500.0)
    rate.observe(31, 0.01)
    rate.observe(100, 0.0)
    assert rate.tokens_per_s == 500.0


def test_small_steps_hardly_hide_what_large_ones_take() -> None:
    rate = PrefillRate(500.0)
    for _ in range(3):
        rate.observe(8192, 0.2)
        for _ in range(5):
            rate.observe(64, 0.009)  # what an 8B model takes on an H100 for 64 tokens behind a cached prefix
    assert 0.8 * 40_960 < rate.tokens_per_s < 40_960


def test_it_follows_a_machine_that_becomes_slower() -> None:
    rate = PrefillRate(500.0)
    for tokens_per_s in [1000.0] * 50 + [500.0] * 120:
        rate.observe(512, 512 / tokens_per_s)
    assert rate.tokens_per_s == pytest.approx(500, rel=0.2)
