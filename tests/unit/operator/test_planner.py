"""Plans against golden files: `golden/<name>/plan.json` and every file that the plan writes.

After a wanted change, write them anew with SHOAL_UPDATE_GOLDEN=1 and read the diff.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from shoal.operator.api import InferenceService, load_manifest, parse_manifest
from shoal.operator.planner import LocalPlan, plan
from shoal.operator.planner.local import envoy_concurrency
from support.manifests import EVERYTHING, observe

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"


def services() -> dict[str, InferenceService]:
    named = {path.stem: load_manifest(path) for path in sorted((ROOT / "examples").glob("*.yaml"))}
    return {**named, "everything": parse_manifest(EVERYTHING, "everything")}


def render_plan(local: LocalPlan) -> dict[str, str]:
    """File name -> text: the plan itself, and what it writes."""
    shown = msgspec.to_builtins(local)
    files = shown.pop("files")
    return {"plan.json": msgspec.json.format(msgspec.json.encode(shown), indent=2).decode() + "\n", **files}


@pytest.mark.parametrize(("name", "service"), services().items())
def test_plan_is_the_golden_one(name: str, service: InferenceService) -> None:
    rendered = render_plan(plan(service, observe(service)))
    folder = GOLDEN / name
    if os.environ.get("SHOAL_UPDATE_GOLDEN"):
        for file, text in rendered.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
    golden = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}
    assert rendered == golden


@pytest.mark.parametrize(("name", "service"), services().items())
def test_plan_is_sound(name: str, service: InferenceService) -> None:
    local = plan(service, observe(service))
    assert local == plan(service, observe(service))
    seen: set[str] = set()
    for process in local.processes:
        assert set(process.depends_on) <= seen, "each process comes after those it depends on"
        assert process.name not in seen
        seen.add(process.name)
        for port in process.ports.values():
            assert port in observe(service).ports.values()
    used = [port for process in local.processes for port in process.ports.values()]
    assert sorted(used) == sorted(observe(service).ports.values()), "each port has one owner"


@pytest.mark.parametrize(
    ("policy", "fallback"),
    [
        ("shoal", "client_side_weighted_round_robin"),
        ("orca", "client_side_weighted_round_robin"),
        ("prefix_hash", "ring_hash"),
    ],
)
def test_the_mesh_balances_as_the_policy_leaves_it_to(policy: str, fallback: str) -> None:
    service = parse_manifest(EVERYTHING.replace("{policy: least_load}", f"{{policy: {policy}}}"), "x")
    local = plan(service, observe(service))
    gateway = next(process for process in local.processes if process.name.startswith("gateway"))
    assert f"--routing-policy={policy}" in gateway.argv
    worker = next(c for c in msgspec.json.decode(local.files["xds/cds.json"])["resources"] if c["name"] == "worker")
    config = worker["load_balancing_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
    names = [p["typed_extension_config"]["name"] for p in config["fallback_policy"]["policies"]]
    assert names == [f"envoy.load_balancing_policies.{fallback}"]


def test_missing_port_is_an_error() -> None:
    service = services()["everything"]
    observed = observe(service)
    ports = {name: port for name, port in observed.ports.items() if name != "worker-2/grpc"}
    with pytest.raises(KeyError, match="worker-2/grpc"):
        plan(service, dataclasses.replace(observed, ports=ports))


def test_threads_default_to_a_share_of_the_cores() -> None:
    service = parse_manifest(EVERYTHING.replace("threads: 2, ", ""), "x")
    for num_cores, threads in ((1, 1), (2, 1), (6, 2), (32, 10)):
        local = plan(service, observe(service, num_cores))
        worker = next(process for process in local.processes if process.name == "worker-0")
        assert f"--threads={threads}" in worker.argv
        assert worker.env["OMP_NUM_THREADS"] == str(threads)


def test_each_worker_sees_one_gpu_and_nobody_else_any() -> None:
    service = services()["qwen3-8b-gpu"]
    service = replace(service, spec=replace(service.spec, workers=replace(service.spec.workers, replicas=2)))
    local = plan(service, observe(service))
    shown = {process.name: process.env.get("CUDA_VISIBLE_DEVICES") for process in local.processes}
    assert {name: gpu for name, gpu in shown.items() if gpu is not None} == {"worker-0": "0", "worker-1": "GPU-1"}
    worker = next(process for process in local.processes if process.name == "worker-0")
    assert not [flag for flag in worker.argv if flag.startswith("--kv-cache-memory-bytes")]


def test_too_many_threads_are_noted_not_refused() -> None:
    service = services()["everything"]
    assert plan(service, observe(service, 6)).notes == ()
    assert plan(service, observe(service, 4)).notes == (
        "workers have 6 compute threads on 4 cores and will slow each other down",
    )


def test_envoy_threads() -> None:
    assert [envoy_concurrency(cores) for cores in (1, 2, 4, 8, 16, 128)] == [1, 1, 1, 2, 4, 4]


def test_nothing_of_envoys_leads_to_what_gateways_tell_each_other() -> None:
    service = services()["everything"]
    local = plan(service, observe(service))
    files = dict(local.files)
    assert '"lb_endpoints": []' in files.pop("xds/eds-gateway-peers.json")
    assert not [name for name, text in files.items() if "gateway-peers" in text]
    gateways = [process for process in local.processes if process.component == "gateway"]
    peers = {str(gateway.serves["gateway-peers"]) for gateway in gateways}
    assert len(peers) == 2
    assert not peers & {str(e) for g in gateways for name, e in g.serves.items() if name != "gateway-peers"}
