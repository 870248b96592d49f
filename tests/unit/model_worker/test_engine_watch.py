"""When an engine counts as stalled, on a clock of our own. Looks are every second of a timeout of four."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.model_worker.engine_watch import EngineWatch

TIMEOUT_S = 4.0


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A watch that looks once a second."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.watch = EngineWatch(TIMEOUT_S, clock=self.clock)

    def stalls_within(self, seconds: int) -> bool:
        for _ in range(seconds):
            self.clock.now_s += self.watch.interval_s
            if self.watch.look():
                return True
        return False


def test_an_idle_engine_owes_nothing() -> None:
    watched = Watched()
    assert not watched.stalls_within(100)
    watched.watch.asked()
    watched.watch.heard(busy=False)
    assert not watched.stalls_within(100)


def test_an_unanswered_command_stalls_after_the_timeout_and_not_before() -> None:
    watched = Watched()
    watched.watch.asked()
    assert not watched.stalls_within(4)
    assert watched.stalls_within(1)


def test_every_frame_gives_the_whole_time_again() -> None:
    watched = Watched()
    watched.watch.asked()
    for _ in range(20):
        assert not watched.stalls_within(4)
        watched.watch.heard(busy=True)
    assert not watched.stalls_within(4)
    assert watched.stalls_within(1)


def test_commands_do_not_give_time() -> None:
    watched = Watched()
    watched.watch.asked()
    for _ in range(4):
        assert not watched.stalls_within(1)
        watched.watch.asked()
    assert watched.stalls_within(1)


def test_who_was_stopped_itself_does_not_blame_the_engine() -> None:
    watched = Watched()
    watched.watch.asked()
    watched.clock.now_s += 1000.0
    assert not watched.stalls_within(1)  # from here on the engine has the whole time
    assert not watched.stalls_within(4)
    assert watched.stalls_within(1)


@given(st.lists(st.sampled_from(["asked", "busy", "idle", "second"]), max_size=60))
def test_it_stalls_exactly_when_a_frame_is_owed_for_too_long(events: list[str]) -> None:
    watched, owed_s = Watched(), None
    for event in events:
        if event == "second":
            owed_s = None if owed_s is None else owed_s + 1
            assert watched.stalls_within(1) == (owed_s is not None and owed_s > TIMEOUT_S)
        elif event == "asked":
            watched.watch.asked()
            owed_s = 0 if owed_s is None else owed_s
        else:
            watched.watch.heard(busy=event == "busy")
            owed_s = 0 if event == "busy" else None
