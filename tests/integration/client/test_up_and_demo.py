from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shoal.client.cli.app import cli
from shoal.client.cli.running import find_running
from support.fake_gateway import FakeGateway
from support.fake_substrate import FakeSubstrate, MeshError, MeshInterrupted

SERVICE = SimpleNamespace(
    metadata=SimpleNamespace(name="demo"),
    spec=SimpleNamespace(model=SimpleNamespace(name="fake"), gateway=SimpleNamespace(auth=None)),
)


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def shoal(monkeypatch: pytest.MonkeyPatch, substrate: FakeSubstrate, *arguments: str) -> Result:
    api = SimpleNamespace(load_manifest=lambda path: SERVICE)
    for module in ("up", "demo"):
        monkeypatch.setattr(f"shoal.client.cli.{module}.require_operator", lambda: (api, substrate))
    return CliRunner().invoke(cli, [*arguments, "-f", "x.yaml"])


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_up_shows_where_it_is_until_ctrl_c_and_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def on_ready() -> None:
        seen.extend(find_running())
        interrupt()

    substrate = FakeSubstrate("127.0.0.1:8080", kv_store="127.0.0.1:7", on_ready=on_ready)
    result = shoal(monkeypatch, substrate, "up")
    assert result.exit_code == 0, result.stderr
    assert [(mesh.name, mesh.endpoint, mesh.kv_store) for mesh in seen] == [("demo", "127.0.0.1:8080", "127.0.0.1:7")]
    assert substrate.left
    assert "worker-0 ready" in result.stdout
    assert "http://127.0.0.1:8080/v1" in result.stdout
    assert "shoal chat --endpoint 127.0.0.1:8080" in result.stdout
    assert "once more to end at once" in result.stderr


def test_a_second_ctrl_c_kills_and_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    substrate = FakeSubstrate(on_ready=interrupt, on_drain=interrupt)
    assert shoal(monkeypatch, substrate, "up").exit_code == 130
    assert substrate.left


def test_up_interrupted_while_starting_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shoal(monkeypatch, FakeSubstrate(fail=MeshInterrupted("asked to stop")), "up").exit_code == 130


def test_a_mesh_that_does_not_start_says_why_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MeshError, "__module__", "shoal.operator.substrate.failures")
    result = shoal(monkeypatch, FakeSubstrate(fail=MeshError("port 8080 is in use")), "up")
    assert (result.exit_code, result.stderr) == (1, "error: port 8080 is in use\n")


def test_without_the_operator_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("shoal.operator"):
            raise ImportError("No module named 'yaml'", name="yaml")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for command in ("up", "demo", "validate"):
        result = CliRunner().invoke(cli, [command, "-f", "x.yaml"])
        assert result.exit_code == 1
        assert "pip install 'shoal[local]'" in result.stderr


async def test_the_demo_is_given_up_when_the_mesh_is_to_stop() -> None:
    from shoal.client.cli.demo import _unless_stopped

    mesh = FakeSubstrate().LocalMesh(SERVICE, on_event=lambda event: None)
    never = asyncio.Event()
    mesh.request_stop()
    assert await _unless_stopped(mesh, never.wait()) == 130


def test_the_demo_fails_when_http_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGateway() as gateway:
        substrate = FakeSubstrate(f"127.0.0.1:{gateway.port}")
        result = shoal(monkeypatch, substrate, "demo")
    assert result.exit_code == 1
    assert "Hello from the mesh." in result.stdout
    assert substrate.left
