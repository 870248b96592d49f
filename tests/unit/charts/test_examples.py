"""Examples for clusters: valid, honest about what this version cannot do, and what their comments say."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.operator.api import InferenceService, find_contradictions, load_manifest
from shoal.operator.api.advice import advise
from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Owner, Platform, find_infeasible, plan

ROOT = Path(__file__).parents[3]
PATHS = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
PLATFORM = Platform(apis=OPTIONAL_APIS)
REFUSED = "the workers of this version refuse to start with it"
every_example = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@every_example
def test_it_is_valid_for_a_cluster(path: Path) -> None:
    service = load_manifest(path)
    assert find_contradictions(service) + find_kubernetes_contradictions(service) == []
    assert find_infeasible(service, PLATFORM) == []


@every_example
def test_it_says_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    name = path.relative_to(ROOT)
    refused = any("refuse" in line for line in map(str, advise(load_manifest(path))))
    assert (REFUSED in text) == refused, "what workers refuse is said, and nothing else is"
    assert f"#   {'shoal plan' if refused else 'kubectl apply'} -f {name}\n" in text


@every_example
def test_whether_its_model_fits_was_checked_or_does_not_matter(path: Path) -> None:
    service = load_manifest(path)
    unchecked = [line for line in map(str, advise(service)) if "was not checked" in line]
    assert not unchecked or service.spec.model.config is None


def test_two_examples_do_not_take_each_others_names() -> None:
    names = [load_manifest(path).metadata.name for path in (*PATHS, *(ROOT / "examples").glob("*.yaml"))]
    assert len(set(names)) == len(names) > 10


def test_groups_are_on_as_many_nodes_as_their_comments_say() -> None:
    pods = {path.stem: _pods_and_gpus(load_manifest(path)) for path in PATHS}
    assert pods["one-gpu"] == [(1, 1)]
    assert pods["tensor-parallel"] == [(2, 4)]
    assert pods["two-nodes"] == [(2, 8)]
    assert pods["prefill-decode"] == [(1, 8), (2, 4)]  # decode, then prefill


def _pods_and_gpus(service: InferenceService) -> list[tuple[int, int]]:
    """Of each group of workers: how many pods, and GPUs of each."""
    found = []
    for each in plan(service, PLATFORM, Owner(namespace="models")):
        spec = each.get("spec", {})
        group = spec.get("leaderWorkerTemplate", {"size": 1, "workerTemplate": spec.get("template")})
        template = group["workerTemplate"]
        if each["kind"] not in ("StatefulSet", "LeaderWorkerSet"):
            continue
        limits = [container["resources"].get("limits", {}) for container in template["spec"]["containers"]]
        gpus = sum(int(limit.get("nvidia.com/gpu", 0)) for limit in limits)
        found.append((spec["replicas"] * group["size"], gpus))
    return sorted(found)
