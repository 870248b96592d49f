"""Who runs first, who gives way, and who leaves early."""

from __future__ import annotations

from shoal.model_worker.scheduler import PriorityPolicy
from support.engine_requests import exactly, make_request
from support.scheduler_harness import SchedulerHarness


def test_preemption_recomputes_the_latest_and_changes_no_output() -> None:
    h = SchedulerHarness(num_blocks=6, block_size=2, max_num_seqs=3)
    requests = [make_request(i, [i, i + 10], sampling=exactly(8)) for i in (1, 2, 3)]
    for request in requests:
        h.scheduler.add(request)
    h.finish_all()
    assert h.scheduler.stats.num_preemptions > 0
    for request in requests:
        h.check_outputs(request)
    assert list(h.finished) == [1, 2, 3]


def test_a_more_urgent_request_takes_the_place_of_the_least_urgent() -> None:
    h = SchedulerHarness(max_num_seqs=2, policy=PriorityPolicy(aging_s=30))
    slow = [make_request(i, [i], priority=i, sampling=exactly(20), arrival_s=0) for i in (1, 2)]
    for request in slow:
        h.scheduler.add(request)
    h.step()
    urgent = make_request(9, [9], priority=0, sampling=exactly(3), arrival_s=1)
    h.scheduler.add(urgent)
    plan = h.step()
    assert plan is not None
    assert plan.released == (1,)
    assert plan.admitted[0].slot == 1
    h.finish_all()
    assert list(h.finished) == [9, 1, 2]
    for request in [*slow, urgent]:
        h.check_outputs(request)


def test_what_was_planned_for_a_victim_of_the_same_step_is_dropped() -> None:
    h = SchedulerHarness(num_blocks=10, max_num_batched_tokens=8, policy=PriorityPolicy(aging_s=30))
    equal = make_request(1, range(20), sampling=exactly(4))  # holds 5 blocks, and 6 in the end
    h.scheduler.add(equal)
    for _ in range(3):
        h.step()
    victim = make_request(2, range(30, 40), priority=5, sampling=exactly(4))
    h.scheduler.add(victim)
    h.step()
    urgent = make_request(3, range(50, 80), sampling=exactly(4))  # needs 8 blocks
    h.scheduler.add(urgent)
    plan = h.step()  # the victim's last three tokens fit the budget, but it must make room, in vain so far
    assert plan is not None
    assert plan.slots.tolist() == [0]
    assert plan.released == (1,)
    h.finish_all()
    for request in (equal, victim, urgent):
        h.check_outputs(request)


def test_waiting_outweighs_priority_in_the_end() -> None:
    h = SchedulerHarness(max_num_seqs=1, policy=PriorityPolicy(aging_s=10))
    h.scheduler.add(make_request(1, [1], priority=0, sampling=exactly(4)))
    h.step()
    h.scheduler.add(make_request(2, [2], priority=1, arrival_s=0, sampling=exactly(1)))
    for i, arrival_s in enumerate((5.0, 9.0, 11.0, 15.0), 3):
        h.scheduler.add(make_request(i, [i], priority=0, arrival_s=arrival_s, sampling=exactly(1)))
    h.finish_all()
    assert list(h.finished) == [1, 3, 4, 2, 5, 6]


def test_a_deadline_ends_a_waiting_and_a_running_request() -> None:
    h = SchedulerHarness(max_num_seqs=1)
    h.scheduler.add(make_request(1, [1], sampling=exactly(50), deadline_s=5))
    h.scheduler.add(make_request(2, [2], sampling=exactly(50), deadline_s=3))
    h.scheduler.add(make_request(3, [3], sampling=exactly(2)))
    h.step()
    h.now_s = 3
    h.step()
    assert set(h.failed) == {2}
    assert "in the queue" in h.failed[2].message
    h.now_s = 5
    plan = h.step()
    assert plan is not None
    assert plan.released == (0,)
    assert h.failed[1].reason == "DEADLINE_EXCEEDED"
    h.finish_all()
    assert set(h.finished) == {3}


def test_cancel_frees_blocks_at_once() -> None:
    h = SchedulerHarness()
    h.scheduler.add(make_request(1, range(30), sampling=exactly(5, n=2)))
    h.step()
    assert h.cache.num_free_blocks < h.cache.num_blocks
    assert h.scheduler.cancel(1)
    assert not h.scheduler.cancel(1)
    assert h.cache.num_free_blocks == h.cache.num_blocks
    assert not h.scheduler.has_work
    h.scheduler.add(make_request(5, range(3), sampling=exactly(1, n=4)))
    h.finish_all()
