"""Runs the real `shoal up` as a user would: a process that says where it serves, and that Ctrl-C ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import yaml

from support.eventually import wait_until
from support.model import smollm2_path

START_TIMEOUT_S = 120.0
MODEL = "smollm2"


def manifest(**spec: object) -> dict[str, object]:
    """A manifest of SmolLM2 on free ports; `spec` replaces or adds sections of the spec."""
    sections: dict[str, object] = {
        "model": {"name": MODEL, "uri": f"file://{smollm2_path()}", "dtype": "bfloat16"},
        "workers": {"replicas": 1},
        "kvCache": {"memory": "256Mi"},
    }
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "e2e"},
        "spec": sections | spec,
    }


@dataclass(frozen=True, slots=True)
class Up:
    """A running `shoal up`."""

    process: subprocess.Popen[bytes]
    output: Path
    runtime_dir: Path
    endpoint: str

    def components(self, name: str) -> list[psutil.Process]:
        """Its living descendants whose command line contains `name`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(name in argument for argument in child.cmdline()):
                    found.append(child)
        return found

    def worker_metrics_urls(self) -> list[str]:
        """Prometheus endpoints of the workers."""
        ports = [
            argument.removeprefix("--metrics-port=")
            for worker in self.components("shoal.model_worker.main")
            for argument in worker.cmdline()
            if argument.startswith("--metrics-port=")
        ]
        return [f"http://127.0.0.1:{port}/metrics" for port in ports]

    def sum_metric(self, name: str) -> float:
        """The sum of a metric over the workers."""
        total = 0.0
        for url in self.worker_metrics_urls():
            values = re.findall(rf"^{name} (\S+)$", httpx.get(url, trust_env=False, timeout=5).text, re.MULTILINE)
            assert values, f"{url} has no {name}"
            total += float(values[0])
        return total

    def stop(self, signum: signal.Signals = signal.SIGINT, timeout_s: float = 90.0) -> int:
        """Ctrl-C, or another signal; the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def shoal_up(tmp_path: Path, document: dict[str, object]) -> Iterator[Up]:
    """Starts `shoal up` on a manifest and waits until it says where it serves; kills it at the end if need be."""
    path, output, runtime_dir = tmp_path / "isvc.yaml", tmp_path / "up.log", tmp_path / "runtime"
    path.write_text(yaml.safe_dump(document))
    runtime_dir.mkdir(mode=0o700)
    command = [str(Path(sys.executable).with_name("shoal")), "up", "-f", str(path), "--log-dir", str(tmp_path / "logs")]
    environ = os.environ | {"XDG_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(runtime_dir)}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ
        )
    try:
        endpoint = ""

        def serving() -> bool:
            nonlocal endpoint
            text = output.read_text()
            assert process.poll() is None, text
            if "Ctrl-C stops it." in text:
                endpoint = next(line.split()[1] for line in text.splitlines() if line.startswith("gRPC"))
            return bool(endpoint)

        wait_until(serving, "shoal up says that it serves", START_TIMEOUT_S)
        yield Up(process, output, runtime_dir, endpoint)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
