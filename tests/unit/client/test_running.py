from __future__ import annotations

from pathlib import Path

import pytest

from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.running import RunningMesh, find_running, recorded
from shoal.client.cli.session import Session


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def test_a_recorded_mesh_is_found_while_it_runs(folder: Path) -> None:
    mesh = RunningMesh("m", "127.0.0.1:1", 5)
    assert find_running() == []
    with recorded(mesh):
        assert find_running() == [mesh]
        assert Session().find_endpoint() == "127.0.0.1:1"
        assert folder.stat().st_mode & 0o777 == 0o700
    assert find_running() == []
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_ignored_and_removed(folder: Path) -> None:
    folder.mkdir()
    left = folder / "up-5.json"
    left.write_text('{"name": "m", "endpoint": "127.0.0.1:1", "pid": 5}')
    assert find_running() == []
    assert not left.exists()


def test_no_mesh_and_several_meshes_ask_for_an_endpoint() -> None:
    with pytest.raises(CommandFailed, match="no endpoint: give --endpoint or set SHOAL_ENDPOINT"):
        Session().find_endpoint()
    with recorded(RunningMesh("a", "127.0.0.1:1", 5)), recorded(RunningMesh("b", "127.0.0.1:2", 6)):
        with pytest.raises(CommandFailed, match=r"2 meshes run here.*127\.0\.0\.1:1 \(a\), 127\.0\.0\.1:2 \(b\)"):
            Session().find_endpoint()
        assert Session(endpoint="x:1").find_endpoint() == "x:1"
