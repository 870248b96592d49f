"""`shoal validate` and `shoal plan` with several manifests, and what they warn of."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from shoal.client.cli.app import cli
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples" / "kubernetes").glob("*.yaml")]
REFUSED = "workers of this version refuse it and do not start; leave it out to be served"


def shoal(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def manifest(name: str, **fields: object) -> str:
    paths = {path.replace("__", "."): value for path, value in fields.items()}
    return yaml.safe_dump(with_fields(MINIMAL_ON_KUBERNETES, {"metadata.name": name, **paths}))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(f"---\n{manifest('one')}---\n{manifest('two')}---\n")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(f"{manifest('one', spec__modle={})}---\n{manifest('two', spec__workers__replicas=0)}")
    return path


def test_all_files_and_documents_are_checked(good: Path, bad: Path) -> None:
    missing = bad.with_name("none.yaml")
    for arguments in (("-f", bad, "-f", missing, "-f", good), ("-f", bad, missing, good)):
        result = shoal("validate", *arguments)
        assert result.exit_code == 1
        assert [line.split(" serves")[0] for line in result.stdout.splitlines()] == [
            f"{good}: valid. one",
            f"{good}: valid. two",
        ]
        assert f"error: {bad}: 2 problems" in result.stderr
        assert f"error: {missing}: 1 problem" in result.stderr
        [line] = [line for line in result.stderr.splitlines() if "spec.workers.replicas" in line]
        number = next(n for n, text in enumerate(bad.read_text().splitlines(), 1) if "replicas: 0" in text)
        assert line.startswith(f"  line {number}: ")


def test_examples_are_valid_all_at_once() -> None:
    result = shoal("validate", "-f", *EXAMPLES)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(": valid. ") == len(EXAMPLES) > 10


def test_no_file_is_a_wrong_use() -> None:
    for command in ("validate", "plan"):
        result = shoal(command)
        assert result.exit_code == 2
        assert "-f FILE" in result.stderr


def test_the_plan_of_several_has_the_objects_of_all(good: Path) -> None:
    result = shoal("plan", "-f", good)
    names = {found["metadata"]["name"] for found in yaml.safe_load_all(result.stdout) if found["kind"] == "StatefulSet"}
    assert (result.exit_code, names) == (0, {"one-worker", "two-worker"})


def test_nothing_is_planned_of_a_wrong_one_or_of_two_with_one_name(good: Path, bad: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(manifest("two"))
    for arguments, words in (
        (("-f", good, "-f", bad), f"{bad}: 2 problems"),
        (("-f", good, "-f", again), f"{again}: InferenceService two of default is given twice, first in {good}"),
    ):
        result = shoal("plan", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
    assert shoal("plan", "-f", good, "-f", good).exit_code == 0, "the same file"


def test_objects_of_others_may_stand_beside_them_but_not_alone(tmp_path: Path) -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\n"
    path = tmp_path / "a.yaml"
    path.write_text(f"{secret}---\n{manifest('one')}")
    result = shoal("validate", "-f", path)
    assert (result.exit_code, result.stdout.count(": valid. one ")) == (0, 1)
    assert "kind: Secret\n" not in shoal("plan", "-f", path).stdout
    path.write_text(f"{secret}---\n{manifest('one', kind='InferenceServise')}")
    assert "line 6: kind: 'InferenceServise' is not served here" in shoal("validate", "-f", path).stderr
    path.write_text(secret)
    result = shoal("validate", "-f", path)
    assert (result.exit_code, "kind: 'Secret' is not served here" in result.stderr) == (1, True)


def test_lines_of_what_only_kubernetes_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{manifest('one')}---\n{manifest('two', spec__model__uri='/m.gguf')}")
    number = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "/m.gguf" in text)
    result = shoal("validate", "--kubernetes", "-f", path)
    assert f"  line {number}: spec.model.uri: '/m.gguf' is not in the pods" in result.stderr


@pytest.mark.parametrize("name", ["tensor-parallel", "two-nodes", "prefill-decode"])
def test_what_workers_refuse_is_told_by_both(name: str) -> None:
    path = ROOT / "examples" / "kubernetes" / f"{name}.yaml"
    for command in (("validate",), ("validate", "--kubernetes"), ("plan",)):
        result = shoal(*command, "-f", path)
        assert result.exit_code == 0
        assert any(
            line.startswith(f"warning: {path}: line ") and line.endswith(REFUSED) for line in result.stderr.splitlines()
        )


def test_clusters_are_told_of_for_clusters_only(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(manifest("one", spec__kvCache={"cpu": "1Gi", "placement": "Node"}))
    told = {command: shoal(*command, "-f", path).stderr for command in (("validate",), ("validate", "--kubernetes"))}
    assert told["validate",] == ""
    assert "spec.kvCache.placement: Node takes a folder of each node" in told["validate", "--kubernetes"]
