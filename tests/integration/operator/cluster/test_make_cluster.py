"""`make cluster`: a control plane for people, of which Ctrl-C leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import psutil
import pytest

from support.control_plane.required import require_binaries
from support.eventually import eventually

pytestmark = pytest.mark.cluster
_TIMEOUT_S = 120.0


async def test_it_serves_until_it_is_interrupted_and_leaves_nothing() -> None:
    kubectl = require_binaries()["kubectl"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "support.control_plane.main", stdout=PIPE, env=environ
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), _TIMEOUT_S)).decode().strip()
        name, _, kubeconfig = line.removeprefix("export ").partition("=")
        assert name == "KUBECONFIG"
        asking = await asyncio.create_subprocess_exec(
            str(kubectl), "get", "inferenceservices", "-A", "-o=name", env={**os.environ, "KUBECONFIG": kubeconfig}
        )
        assert await asyncio.wait_for(asking.wait(), 60) == 0
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 3, "etcd and the programs of Kubernetes"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await eventually(lambda: not any(map(is_running, children)), "all of them ended", 30)
        assert not await asyncio.to_thread(Path(kubeconfig).exists)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
