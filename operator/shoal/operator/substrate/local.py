"""One InferenceService as processes on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from shoal.gguf import GgufError
from shoal.operator.api import InferenceService, ManifestError, Problem, find_contradictions
from shoal.operator.envoy import EnvoyMissing, find_envoy
from shoal.operator.planner import LocalPlan, Observed, plan, required_ports
from shoal.operator.substrate.events import Event, OnEvent, State
from shoal.operator.substrate.failures import MeshError, MeshInterrupted
from shoal.operator.substrate.guard import Guard
from shoal.operator.substrate.machine import observe_machine, raise_file_limit
from shoal.operator.substrate.model import fetch_model
from shoal.operator.substrate.model_facts import read_model_facts
from shoal.operator.substrate.options import SupervisorOptions
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.run_dir import create_run_dir, write_files
from shoal.operator.substrate.supervisor import Supervisor

COMPONENT = "mesh"
_LOG_FOLDER = "logs"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Planner = Callable[[InferenceService, Observed], LocalPlan]


class LocalMesh:
    """A running mesh, as an asynchronous context manager.

    Entering returns once clients can be served, or raises and leaves nothing behind: ManifestError (machine or model
    make it impossible), PortInUse, ProcessFailed (with the last lines of the log), MeshInterrupted, another MeshError.
    Leaving drains and ends everything: gateways first, then Envoy and what is behind it. Processes that end in between
    are started again.

    With `handle_signals`, the first SIGINT, SIGTERM or SIGHUP makes `wait` return (or entering raise MeshInterrupted),
    the second one kills everything at once. Processes, run directory and logs are gone afterwards even when this
    process gets SIGKILL; give `log_dir` to keep the logs.
    """

    def __init__(
        self,
        service: InferenceService,
        *,
        on_event: OnEvent = lambda event: None,
        handle_signals: bool = True,
        log_dir: Path | None = None,
        options: SupervisorOptions | None = None,
        planner: Planner = plan,
    ) -> None:
        self._service = service
        self._on_event = on_event
        self._handle_signals = handle_signals
        self._log_dir = log_dir
        self._options = options or SupervisorOptions()
        self._planner = planner
        self._stop = asyncio.Event()
        self._exit = contextlib.AsyncExitStack()
        self._run_dir: Path | None = None
        self._plan: LocalPlan | None = None
        self._supervisor: Supervisor | None = None

    @property
    def run_dir(self) -> Path:
        """Files of the run; gone when the mesh is. Only once entered."""
        assert self._run_dir is not None, "enter the mesh first"
        return self._run_dir

    @property
    def plan(self) -> LocalPlan:
        """What is running. Only once entered."""
        assert self._plan is not None, "enter the mesh first"
        return self._plan

    @property
    def supervisor(self) -> Supervisor:
        """Who keeps it running. Only once entered."""
        assert self._supervisor is not None, "enter the mesh first"
        return self._supervisor

    @property
    def endpoint(self) -> str:
        """`host:port` for gRPC clients."""
        return str(self.plan.edge)

    @property
    def url(self) -> str:
        """Base of the OpenAI-compatible API, without /v1."""
        return f"http://{self.plan.edge}"

    @property
    def kv_store(self) -> str:
        """`host:port` of the KV store; empty: the mesh has none."""
        return next((each.readiness.target for each in self.plan.processes if each.component == "kv_store"), "")

    async def wait(self) -> None:
        """Returns when it is time to leave: after a signal or `request_stop`. Raises what makes going on impossible."""
        watch = asyncio.ensure_future(self.supervisor.watch())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({watch, stop}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
        finally:
            watch.cancel()
            stop.cancel()
            await asyncio.gather(watch, stop, return_exceptions=True)

    def request_stop(self) -> None:
        """Makes `wait` return, or entering raise MeshInterrupted. A second request is a `kill`."""
        if self._stop.is_set():
            self.kill()
        self._stop.set()

    def kill(self) -> None:
        """Ends all processes at once; leaving the mesh then takes no time."""
        self._stop.set()
        if self._supervisor is not None:
            self._supervisor.kill()

    async def __aenter__(self) -> LocalMesh:
        """Starts everything."""
        if self._handle_signals:
            self._exit.enter_context(_signals_handled(self.request_stop))
        try:
            await self._unless_stopped(self._start())
        except BaseException as error:
            self._on_event(Event(COMPONENT, State.STOPPING, str(error)))
            await self._exit.aclose()
            self._on_event(Event(COMPONENT, State.STOPPED))
            raise
        self._on_event(Event(COMPONENT, State.READY, self.endpoint))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends everything."""
        self._stop.set()  # from here on a signal is the second one
        self._on_event(Event(COMPONENT, State.STOPPING))
        await self._exit.aclose()
        self._on_event(Event(COMPONENT, State.STOPPED))

    async def _start(self) -> None:
        self._on_event(Event(COMPONENT, State.STARTING, self._service.metadata.name))
        machine = observe_machine()
        self._refuse(find_contradictions(self._service, machine))
        envoy = _require_envoy()
        ports = self._exit.enter_context(PortReservations())
        wanted = {"edge": self._service.spec.gateway.port}
        for name in required_ports(self._service):
            ports.reserve(name, wanted.get(name, 0))
        model_path = await fetch_model(self._service.spec.model, self._on_event)
        try:
            facts = read_model_facts(model_path)
        except GgufError as error:
            raise MeshError(f"cannot use the model: {error}") from error
        self._refuse(find_contradictions(self._service, machine, facts))
        run_dir = self._run_dir = create_run_dir()
        self._exit.callback(shutil.rmtree, run_dir, ignore_errors=True)
        guard = await Guard.start(run_dir)
        self._exit.push_async_callback(guard.close)
        log_dir = (self._log_dir or run_dir / _LOG_FOLDER).resolve()
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        observed = Observed(
            machine=machine,
            run_dir=str(run_dir),
            log_dir=str(log_dir),
            model_path=str(model_path),
            python=sys.executable,
            envoy=str(envoy),
            ports=ports.by_name,
        )
        self._plan = self._planner(self._service, observed)
        for note in self._plan.notes:
            self._on_event(Event(COMPONENT, State.STARTING, note))
        await self._supervise(run_dir, log_dir, guard)

    async def _supervise(self, run_dir: Path, log_dir: Path, guard: Guard) -> None:
        write_files(run_dir, self.plan.files)
        raise_file_limit()
        self._supervisor = Supervisor(
            self.plan,
            run_dir=run_dir,
            log_dir=log_dir,
            guard=guard,
            on_event=self._on_event,
            options=self._options,
        )
        self._exit.push_async_callback(self._supervisor.stop)
        await self._supervisor.start()

    def _refuse(self, problems: Sequence[Problem]) -> None:
        if problems:
            raise ManifestError(self._service.metadata.name, problems)

    async def _unless_stopped(self, awaitable: Awaitable[None]) -> None:
        work = asyncio.ensure_future(awaitable)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise MeshInterrupted("asked to stop before everything was up")
            work.result()
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)


def _require_envoy() -> Path:
    try:
        return find_envoy()
    except EnvoyMissing as error:
        raise MeshError(str(error)) from error


@contextlib.contextmanager
def _signals_handled(callback: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
