"""From `kubectl apply` to an answer, everything real but images: run in a network namespace of its own.

    unshare --net -- python -m support.control_plane.whole_mesh MODEL MANIFEST [CHANGE ...]

Prints two lines of JSON: seconds and the answer; what went wrong while the changes, JSON for the spec, were made under
load.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.client import AsyncClient
from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.planner.kubernetes.kv_stores import STORE_METRICS_PORT
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.binaries import find_binaries
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.control_plane.process_kubelet import POD_NETWORK, ProcessKubelet, node
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.operator_running import POD, Namespace

_OPERATOR = "10.88.0.1"
_NAMESPACE = "default"
_PATIENCE_S = 240.0
_NUM_STREAMS = 4
_NUM_TOKENS = 24
_GROUP = Kind("apps/v1", "StatefulSet", "statefulsets")


def main() -> None:
    """See the module."""
    model, manifest = Path(sys.argv[1]), Path(sys.argv[2])
    changes = list(map(json.loads, sys.argv[3:]))
    for command in ("ip link set lo up", f"ip route add local {POD_NETWORK} dev lo"):
        subprocess.run(command.split(), check=True)
    with running_control_plane(find_binaries(), definitions=[custom_resource_definition()], num_nodes=0) as plane:
        plane.request("POST", "/api/v1/nodes", json.dumps(node()).encode())
        print(json.dumps(asyncio.run(_run(plane, model, manifest, changes))))


async def _run(plane: ControlPlane, model: Path, manifest: Path, changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    space = Namespace(plane, _NAMESPACE)
    with tempfile.TemporaryDirectory() as folder:
        kubelet = ProcessKubelet(plane, _NAMESPACE, Path(folder), model)
        running = asyncio.ensure_future(kubelet.run())
        flags = (f"--kubeconfig={plane.kubeconfig}", f"--host={_OPERATOR}", "--log-format=json", "--cache-check-s=1")
        # The follower and Envoy are told this address; a later flag wins over the free port that `launch` asks for.
        ports = ("--port=18000", f"--control-plane={_OPERATOR}:18000")
        try:
            async with await LoggedProcess.launch("shoal.operator.main", *flags, *ports) as operator:
                await operator.wait_logged("watching")
                using = asyncio.ensure_future(_use(space, manifest, kubelet, changes))
                await asyncio.wait({using, running}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    using.cancel()
                    running.result()
                return await using
        except BaseException:
            print(kubelet.logs(), file=sys.stderr)
            raise
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _use(
    space: Namespace, manifest: Path, kubelet: ProcessKubelet, changes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    started_s = time.monotonic()
    await asyncio.to_thread(space.plane.kubectl, "apply", "-f", str(manifest))
    name = (await space.list(SERVICE_KIND))[0]["metadata"]["name"]
    status = await space.until_phase(name, "Ready", timeout_s=_PATIENCE_S)
    ready_s = time.monotonic() - started_s
    [gateway] = await space.list(POD, "app.kubernetes.io/component=gateway")
    async with AsyncClient(f"{gateway['status']['podIP']}:8080") as client:
        text, first_s = "", 0.0
        async for chunk in client.chat_stream([{"role": "user", "content": "Why is the sea salty?"}], max_tokens=16):
            first_s = first_s or time.monotonic() - started_s
            text += chunk.text
        routes = next(c["status"] for c in status["conditions"] if c["type"] == "RoutesProgrammed")
        timeline = [(round(at_s - started_s, 2), pod, what) for at_s, pod, what in kubelet.timeline]
        answer = {"ready_s": ready_s, "first_token_s": first_s, "text": text, "routes": routes, "timeline": timeline}
        if (await space.service(name))["spec"]["kvCache"].get("cpu"):
            await eventually(lambda: _has_stored(space), "a worker's KV store has blocks of the answer", 30)
        print(json.dumps(answer), flush=True)
        changed = await _change_under_load(space, client, name, changes)
    return {**changed, "caches": await _stop_a_worker(space, kubelet, name)}


async def _has_stored(space: Namespace) -> bool:
    [worker] = await space.list(POD, "app.kubernetes.io/component=worker")
    url = f"http://{worker['status']['podIP']}:{STORE_METRICS_PORT}/metrics"
    text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read())).decode()
    return any(line.startswith("shoal_kv_store_blocks ") and float(line.split()[1]) > 0 for line in text.splitlines())


async def _change_under_load(
    space: Namespace, client: AsyncClient, name: str, changes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One change after the other, each until it is done, while streams begin and end."""
    failed: list[str] = []
    answered = 0
    stop = asyncio.Event()

    async def ask() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                answer = await client.generate("The sea is", max_tokens=_NUM_TOKENS, ignore_eos=True)
                if answer.usage.completion_tokens == _NUM_TOKENS:
                    answered += 1
                else:
                    failed.append(f"{answer.usage.completion_tokens} tokens, {answer.finish_reason}")
            except Exception as error:
                failed.append(repr(error))

    asking = [asyncio.ensure_future(ask()) for _ in range(_NUM_STREAMS)]
    groups = []
    for change in changes:
        changed = await space.patch(SERVICE_KIND, name, {"spec": change})
        await space.until_phase(name, "Ready", changed["metadata"]["generation"], _PATIENCE_S)
        groups.append(sorted(found["metadata"]["name"] for found in await space.list(_GROUP)))
    stop.set()
    await asyncio.gather(*asking)
    await _until_caches(space, name, "True")
    return {"answered": answered, "failed": failed, "groups": groups}


async def _stop_a_worker(space: Namespace, kubelet: ProcessKubelet, name: str) -> dict[str, Any]:
    """What is said of caches while the processes of a worker stand still, its connections open, and when they go on."""
    [group] = await space.list(_GROUP)
    worker = await _only_worker(space, group["metadata"]["name"])
    kubelet.stop(worker["metadata"]["name"])
    try:
        stopped = await _until_caches(space, name, "False")
    finally:
        kubelet.go_on(worker["metadata"]["name"])
    address = worker["status"]["podIP"]
    return {"address": address, "stopped": stopped, "going_on": await _until_caches(space, name, "True")}


async def _only_worker(space: Namespace, group: str) -> dict[str, Any]:
    """The pod of a group of one, once those of earlier groups have gone: nobody follows their caches."""
    found: list[dict[str, Any]] = []

    async def is_alone() -> bool:
        found[:] = await space.list(POD, "app.kubernetes.io/component=worker")
        return [pod["metadata"]["name"] for pod in found] == [f"{group}-0"]

    await eventually(is_alone, f"the one worker is {group}-0", 60)
    return found[0]


async def _until_caches(space: Namespace, name: str, state: str) -> dict[str, str]:
    """Conditions, once CacheEventsFlowing is that; `message` is its own."""
    found: dict[str, str] = {}

    async def is_so() -> bool:
        conditions = (await space.service(name))["status"]["conditions"]
        by_type = {condition["type"]: condition for condition in conditions}
        found.update({kind: condition["status"] for kind, condition in by_type.items()})
        found["message"] = by_type["CacheEventsFlowing"]["message"]
        return found["CacheEventsFlowing"] == state

    try:
        await eventually(is_so, f"CacheEventsFlowing is {state}", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}: {found}") from None
    return found


if __name__ == "__main__":
    main()
