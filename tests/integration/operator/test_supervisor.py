"""The supervisor with real processes: order, restarts, back-off, crash loops, hangs, stubborn processes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from shoal.operator.envoy import Endpoint
from shoal.operator.planner import LocalPlan, ProcessPlan, Readiness, ReadinessKind
from shoal.operator.substrate import Event, ProcessFailed, State, SupervisorOptions
from shoal.operator.substrate.guard import Guard
from shoal.operator.substrate.guardian import find_marked
from shoal.operator.substrate.logs import previous_log
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.run_dir import create_run_dir
from shoal.operator.substrate.supervisor import Supervisor
from support.eventually import eventually
from support.fake_mesh import FAST, fake_process, is_running


class Stage:
    """A supervisor over fake programs, with what they recorded and what it reported."""

    def __init__(self, folder: Path, ports: PortReservations) -> None:
        self.record = folder / "record"
        self.record.touch()
        self.run_dir = create_run_dir()
        self.events: list[Event] = []
        self._ports = ports
        self.supervisor: Supervisor

    def process(self, name: str, *options: str, **changes: object) -> ProcessPlan:
        return fake_process(name, self._ports.reserve(name), self.record, *options, **changes)

    def states(self, name: str) -> list[State]:
        return [event.state for event in self.events if event.component == name]

    def recorded(self) -> list[str]:
        return self.record.read_text().splitlines()

    @asynccontextmanager
    async def supervising(
        self, *processes: ProcessPlan, options: SupervisorOptions = FAST
    ) -> AsyncIterator[Supervisor]:
        """Starts nothing yet; stops and cleans up at the end, and checks that nothing is left."""
        plan = LocalPlan(name="test", processes=processes, files={}, edge=Endpoint("127.0.0.1", 1))
        (self.run_dir / "xds").mkdir()
        guard = await Guard.start(self.run_dir)
        supervisor = Supervisor(
            plan, run_dir=self.run_dir, log_dir=self.run_dir, guard=guard, on_event=self.events.append, options=options
        )
        try:
            yield supervisor
        finally:
            await supervisor.stop()
            await guard.close()
        assert find_marked(f"SHOAL_RUN_ID={guard.run_id}".encode()) == []
        assert not self.run_dir.exists()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with PortReservations() as ports:
        yield Stage(tmp_path, ports)


async def test_starts_in_order_and_stops_in_reverse(stage: Stage) -> None:
    a = stage.process("a")
    b = stage.process("b", "linger=0.2", depends_on=("a",))
    c = stage.process("c", "linger=0.4", depends_on=("a", "b"))
    async with stage.supervising(a, b, c) as supervisor:
        await supervisor.start()
        assert stage.recorded() == ["started a", "started b", "started c"]
    assert stage.recorded()[3:] == ["ended c", "ended b", "ended a"]
    for name in "abc":
        assert stage.states(name) == [
            State.WAITING,
            State.STARTING,
            State.READY,
            State.STOPPING,
            State.STOPPED,
        ]


async def test_crash_restarts_with_growing_back_off_and_comes_back(stage: Stage, tmp_path: Path) -> None:
    obstacle = tmp_path / "obstacle"
    serves = {"worker": Endpoint("127.0.0.1", 7)}
    worker = stage.process("worker-0", f"crash-while={obstacle}", serves=serves)
    eds = stage.run_dir / "xds" / "eds-worker.json"
    async with stage.supervising(worker) as supervisor:
        await supervisor.start()
        assert '"port_value": 7' in eds.read_text()
        obstacle.touch()
        pid = supervisor.keepers["worker-0"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: State.CRASH_LOOP in stage.states("worker-0"), "a crash loop is reported")
        assert '"port_value": 7' not in eds.read_text()
        waits = [event for event in stage.events if event.state in (State.BACKOFF, State.CRASH_LOOP)]
        assert waits[0].detail == "killed by SIGKILL; starting again in 0.02 s"
        assert waits[1].detail == "exit code 3; starting again in 0.04 s"
        assert "in 0.08 s (failure 3 in a row)" in waits[2].detail
        assert waits[2].detail.endswith("worker-0 cannot go on")
        obstacle.unlink()
        await eventually(lambda: stage.events[-1].state is State.READY, "the worker is back")
        assert '"port_value": 7' in eds.read_text()


async def test_start_fails_with_the_log_when_a_process_keeps_ending(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "obstacle").touch()
    good = stage.process("good")
    bad = stage.process("bad", f"crash-while={tmp_path / 'obstacle'}")
    async with stage.supervising(good, bad, stage.process("late", depends_on=("bad",))) as supervisor:
        with pytest.raises(ProcessFailed) as caught:
            await supervisor.start()
    assert str(caught.value).startswith("bad did not start: exit code 3; its last lines:\n")
    assert str(caught.value).endswith("bad cannot go on")
    assert stage.recorded().count("started bad") == FAST.max_start_attempts
    assert "started late" not in stage.recorded()
    assert stage.states("good")[-1] is State.STOPPED


async def test_wrong_settings_are_not_tried_twice(stage: Stage) -> None:
    async with stage.supervising(stage.process("bad", "exit-code=2")) as supervisor:
        with pytest.raises(ProcessFailed, match="exit code 2"):
            await supervisor.start()
    assert stage.recorded() == ["started bad"]


async def test_missing_program_is_named(stage: Stage) -> None:
    missing = stage.process("bad", argv=("/nowhere/program",))
    async with stage.supervising(missing) as supervisor:
        with pytest.raises(ProcessFailed, match="cannot execute /nowhere/program: No such file or directory"):
            await supervisor.start()


async def test_silence_until_the_deadline_is_a_failure(stage: Stage) -> None:
    readiness = Readiness(kind=ReadinessKind.HTTP, target="127.0.0.1:1", deadline_s=0.2)
    options = dataclasses.replace(FAST, max_start_attempts=1)
    async with stage.supervising(stage.process("mute", "mute", readiness=readiness), options=options) as supervisor:
        with pytest.raises(ProcessFailed, match=r"not ready after 0\.2 s"):
            await supervisor.start()


async def test_hung_process_is_reported_then_replaced(stage: Stage) -> None:
    options = dataclasses.replace(FAST, probe_timeout_s=0.1)
    async with stage.supervising(stage.process("w"), options=options) as supervisor:
        await supervisor.start()
        first = supervisor.keepers["w"].pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await eventually(lambda: State.UNHEALTHY in stage.states("w"), "the hang is reported")
        await eventually(lambda: stage.states("w")[-1] is State.READY, "another one runs")
        assert supervisor.keepers["w"].pid != first
        assert any("answered no health check for 1 s" in event.detail for event in stage.events)


async def test_stubborn_process_is_killed_after_its_drain_time(stage: Stage) -> None:
    async with stage.supervising(stage.process("s", "stubborn", drain_timeout_s=0.3)) as supervisor:
        await supervisor.start()
        async with asyncio.timeout(30):
            await supervisor.stop()
        assert stage.states("s")[-1] is State.STOPPED


async def test_kill_waits_for_nobody(stage: Stage) -> None:
    async with stage.supervising(stage.process("s", "stubborn", drain_timeout_s=60.0)) as supervisor:
        await supervisor.start()
        stopping = asyncio.create_task(supervisor.stop())
        await eventually(lambda: stage.states("s")[-1] is State.STOPPING, "the stop is under way")
        supervisor.kill()
        await asyncio.wait_for(stopping, 5)


async def test_grandchildren_end_with_the_mesh(stage: Stage) -> None:
    async with stage.supervising(stage.process("w", "grandchild")) as supervisor:
        await supervisor.start()
        pid = supervisor.keepers["w"].pid
        assert pid is not None
        (grandchild,) = psutil.Process(pid).children()
        assert os.getsid(grandchild.pid) != os.getsid(pid)  # out of reach of a signal to the group
    assert not is_running(grandchild)


async def test_watch_raises_what_a_keeper_cannot_handle(stage: Stage) -> None:
    """The endpoint files' folder is gone: nobody could be told of the worker's end."""
    worker = stage.process("worker-0", serves={"worker": Endpoint("127.0.0.1", 7)})
    async with stage.supervising(worker) as supervisor:
        await supervisor.start()
        shutil.rmtree(stage.run_dir / "xds")
        pid = supervisor.keepers["worker-0"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OSError, match="eds-worker"):
            await asyncio.wait_for(supervisor.watch(), 10)


async def test_a_start_is_reported_by_the_process_own_account_or_by_time(stage: Stage, tmp_path: Path) -> None:
    go = tmp_path / "go"
    says, silent = stage.process("says", f"loading-until={go}"), stage.process("silent", "mute")
    options = dataclasses.replace(FAST, start_report_interval_s=0.1)
    async with stage.supervising(says, silent, options=options) as supervisor:
        starting = asyncio.create_task(supervisor.start())
        half_way = Event("says", State.STARTING, "weights", 0.4)
        await eventually(lambda: half_way in stage.events, "the stage is reported")
        await eventually(lambda: stage.states("silent").count(State.STARTING) > 2, "time goes by for the silent one")
        go.touch()
        await eventually(lambda: stage.states("says")[-1] is State.READY, "it is ready")
        await supervisor.stop()
        await starting


async def test_a_talkative_process_does_not_fill_the_disk(stage: Stage) -> None:
    limit_bytes = 64 << 10
    options = dataclasses.replace(FAST, max_log_bytes=limit_bytes, log_check_interval_s=0.01)
    log = stage.run_dir / "w.log"
    async with stage.supervising(stage.process("w", "chatter=30000"), options=options) as supervisor:
        await supervisor.start()  # 1.3 MB were written until then
        await eventually(lambda: log.stat().st_size <= limit_bytes, "the log is cut a last time")
        await supervisor.stop()
        current, previous = log.read_bytes(), previous_log(log).read_bytes()
    assert current.endswith(b"goodbye\n")
    assert b"\0" not in current  # no hole: the writer went on at the start of the file
    assert len(previous) <= 2 * limit_bytes
    numbers = [int(line[5:13]) for line in (previous + current).splitlines()[1:-1] if line.startswith(b"line ")]
    assert numbers
    assert numbers == sorted(set(numbers))


async def test_environment_is_cleaned(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SHOAL_* variable of the user's shell must not change what the manifest says."""
    monkeypatch.setenv("SHOAL_PORT", "1")
    monkeypatch.setenv("no_proxy", "example.org")
    async with stage.supervising(stage.process("w", env={"ADDED": "yes"})) as supervisor:
        await supervisor.start()
        environ = psutil.Process(supervisor.keepers["w"].pid).environ()
    assert "SHOAL_PORT" not in environ
    assert environ["ADDED"] == "yes"
    assert environ["no_proxy"] == "example.org,127.0.0.1,localhost"
