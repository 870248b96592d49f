"""LocalMesh: fake programs behind a real Envoy, signals, and what is left when it is over (nothing)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from msgspec.structs import replace

from shoal.operator.api import ManifestError
from shoal.operator.substrate import Event, LocalMesh, MeshError, MeshInterrupted, PortInUse, ProcessFailed, State
from support import fake_mesh
from support.eventually import eventually
from support.fake_mesh import FAST, is_running, make_service, plan_fakes

SHARED_MEMORY = Path("/dev/shm")


def list_shared_memory() -> set[Path]:
    return set(SHARED_MEMORY.glob("*envoy*"))


class Program:
    """`fake_mesh.py` running as a program of its own."""

    def __init__(self, process: asyncio.subprocess.Process, up: dict[str, Any], shared_before: set[Path]) -> None:
        self.process = process
        self.run_dir = Path(up["run_dir"])
        self.edge_port: int = up["edge"]
        self.tree = psutil.Process(process.pid).children(recursive=True)
        self._shared_before = shared_before

    def leftovers(self) -> list[str]:
        """Processes, files and shared memory that should be gone."""
        found = [f"process {process.name()}" for process in self.tree if is_running(process)]
        found += [str(self.run_dir)] if self.run_dir.exists() else []
        return found + [str(path) for path in list_shared_memory() - self._shared_before]

    async def assert_nothing_left(self) -> None:
        await eventually(lambda: not self.leftovers(), "nothing is left")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections in TIME_WAIT are fine
            probe.bind(("127.0.0.1", self.edge_port))
            probe.listen()


@asynccontextmanager
async def running_program(folder: Path, *worker_options: str) -> AsyncIterator[Program]:
    shared_before = list_shared_memory()
    process = await asyncio.create_subprocess_exec(
        sys.executable, fake_mesh.__file__, str(folder), *worker_options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        yield Program(process, json.loads(line), shared_before)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigkill_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    make_service(tmp_path)
    async with running_program(tmp_path, "grandchild", "stubborn") as program:
        names = {process.name() for process in program.tree}
        assert "envoy" in names
        assert len(program.tree) == 6  # guardian, Envoy, tokenizer, worker and its child, gateway
        program.process.kill()
        await program.process.wait()
        await program.assert_nothing_left()


async def test_first_interrupt_drains(tmp_path: Path) -> None:
    async with running_program(tmp_path) as program:
        program.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(program.process.wait(), 20) == 0
        await program.assert_nothing_left()
    record = (tmp_path / "record").read_text().splitlines()
    assert record[3] == "ended gateway-0"
    assert sorted(record[4:]) == ["ended tokenizer-0", "ended worker-0"]


async def test_second_interrupt_kills(tmp_path: Path) -> None:
    async with running_program(tmp_path, "stubborn") as program:
        program.process.send_signal(signal.SIGINT)
        ended = tmp_path / "record"
        await eventually(lambda: "ended tokenizer-0" in ended.read_text(), "the drain has begun")
        program.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(program.process.wait(), 5) == 0  # the stubborn worker has 10 s otherwise
        await program.assert_nothing_left()


async def test_port_in_use_names_port_and_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            async with LocalMesh(make_service(tmp_path, port=port), handle_signals=False):
                pass
    assert f"port {port} is in use by " in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)


async def test_edge_is_the_asked_port_and_survives_a_crash_of_envoy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    events: list[Event] = []
    mesh = LocalMesh(
        make_service(tmp_path, port=port),
        on_event=events.append,
        handle_signals=False,
        options=FAST,
        planner=plan_fakes(tmp_path / "record"),
    )
    async with mesh:
        assert (mesh.endpoint, mesh.url) == (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}")
        envoy = mesh.supervisor.keepers["envoy"]
        assert envoy.pid is not None
        os.kill(envoy.pid, signal.SIGKILL)
        await eventually(lambda: _count(events, "envoy", State.READY) == 2, "Envoy is back")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        assert mesh.run_dir.stat().st_mode & 0o777 == 0o700
    assert not mesh.run_dir.exists()
    assert events[-1] == Event("mesh", State.STOPPED)


async def test_the_access_log_is_kept_with_the_others_and_bounded(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    service = make_service(tmp_path)
    observability = replace(service.spec.observability, access_log=True)
    mesh = LocalMesh(
        replace(service, spec=replace(service.spec, observability=observability)),
        handle_signals=False,
        log_dir=logs,
        options=dataclasses.replace(FAST, max_log_bytes=32 << 10, log_check_interval_s=0.01),
        planner=plan_fakes(tmp_path / "record"),
    )
    async with mesh, httpx.AsyncClient(base_url=mesh.url, trust_env=False) as http:

        async def ask_until_cut() -> bool:
            for _ in range(100):
                await http.get("/healthz")
            return (logs / "access.log.1").exists()

        await eventually(ask_until_cut, "Envoy's access log is cut")  # Envoy writes 64 KiB at once
    access = (logs / "access.log").read_bytes()
    assert b"\0" not in access
    assert all(json.loads(line)["path"] == "/healthz" for line in access.splitlines())
    assert access.splitlines()  # what Envoy still held when it ended came after the cut


async def test_stop_while_starting(tmp_path: Path) -> None:
    events: list[Event] = []
    mesh = LocalMesh(
        make_service(tmp_path),
        on_event=events.append,
        handle_signals=False,
        options=FAST,
        planner=plan_fakes(tmp_path / "record", "mute"),
    )
    entering = asyncio.create_task(mesh.__aenter__())
    await eventually(lambda: _count(events, "tokenizer-0", State.READY) == 1, "the start is half done")
    mesh.request_stop()
    with pytest.raises(MeshInterrupted):
        await asyncio.wait_for(entering, 20)
    assert not mesh.run_dir.exists()


async def test_failed_start_cleans_up_and_keeps_logs_when_asked(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    mesh = LocalMesh(
        make_service(tmp_path),
        handle_signals=False,
        log_dir=logs,
        options=FAST,
        planner=plan_fakes(tmp_path / "record", "exit-code=2"),
    )
    with pytest.raises(ProcessFailed, match="worker-0 did not start: exit code 2"):
        await mesh.__aenter__()
    assert not mesh.run_dir.exists()
    assert (logs / "worker-0.log").read_text() == "worker-0 says hello\n"


async def test_missing_model_is_named(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    (tmp_path / "model.gguf").unlink()
    with pytest.raises(MeshError, match=r"cannot get the model: .*model\.gguf does not exist"):
        await LocalMesh(service, handle_signals=False).__aenter__()


async def test_missing_envoy_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    with pytest.raises(MeshError, match=r"pip install 'shoal\[envoy\]'"):
        await LocalMesh(make_service(tmp_path), handle_signals=False).__aenter__()


async def test_more_memory_than_the_machine_is_refused(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    huge = type(service.spec.kv_cache)(memory="100Ti")
    service = replace(service, spec=replace(service.spec, kv_cache=huge))
    with pytest.raises(ManifestError, match=r"spec\.kvCache\.memory: 100Ti for each of 1 workers"):
        await LocalMesh(service, handle_signals=False).__aenter__()


async def test_length_beyond_the_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "max_position_embeddings": 512}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    service = make_service(tmp_path)
    model = replace(service.spec.model, uri=str(tmp_path / "model"), max_model_len=1024)
    service = replace(service, spec=replace(service.spec, model=model))
    with pytest.raises(ManifestError, match=r"spec\.model\.maxModelLen: 1024 is more than the 512 tokens"):
        await LocalMesh(service, handle_signals=False).__aenter__()


def _count(events: list[Event], component: str, state: State) -> int:
    return sum(event.component == component and event.state is state for event in events)
