"""Envoy's configuration, validated by the real binary."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal.operator.envoy import Endpoint, EnvoyOptions, clusters, endpoints_file, find_envoy, render_files
from shoal.operator.substrate.run_dir import write_files


def make_options(run_dir: Path, **changes: Any) -> EnvoyOptions:
    values: dict[str, Any] = {
        "node_id": "test",
        "run_dir": str(run_dir),
        "admin_socket": f"{run_dir}/admin.sock",
        "edge": Endpoint("127.0.0.1", 1),
        "mesh": Endpoint("127.0.0.1", 2),
        "num_workers": 2,
    }
    return EnvoyOptions(**(values | changes))


def make_static(files: dict[str, str]) -> dict[str, Any]:
    """One bootstrap that holds the clusters and listeners: `--mode validate` does not follow files."""
    bootstrap = msgspec.json.decode(files["envoy.json"])
    del bootstrap["dynamic_resources"]
    resources = {}
    for kind, file in (("clusters", "xds/cds.json"), ("listeners", "xds/lds.json")):
        resources[kind] = msgspec.json.decode(files[file])["resources"]
        for resource in resources[kind]:
            del resource["@type"]
    return {**bootstrap, "static_resources": resources}


def validate(config: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "static.json"
    path.write_bytes(msgspec.json.encode(config))
    command = [str(find_envoy()), "--mode", "validate", "-c", str(path), "-l", "warning"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    "changes", [{}, {"num_workers": 1}, {"num_workers": 64, "access_log": "/dev/null"}, {"balancing": "prefix_hash"}]
)
def test_envoy_accepts_it_without_a_warning(tmp_path: Path, changes: dict[str, Any]) -> None:
    files = render_files(make_options(tmp_path, **changes), {"worker": [Endpoint("127.0.0.1", 7)]})
    write_files(tmp_path, files)
    result = validate(make_static(files), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "OK" in result.stdout
    assert result.stderr == ""


def test_validation_sees_mistakes(tmp_path: Path) -> None:
    """Otherwise the test above proves nothing."""
    files = render_files(make_options(tmp_path), {})
    write_files(tmp_path, files)
    config = make_static(files)
    config["static_resources"]["clusters"][0]["load_balancing_policy"]["policies"][0]["typed_extension_config"][
        "typed_config"
    ]["override_host_sources"] = []
    assert "OverrideHostSources" in validate(config, tmp_path).stderr


def test_single_worker_is_never_ejected(tmp_path: Path) -> None:
    """With nobody to take over, ejecting turns some failures into all."""
    for num_workers, ejects in ((1, False), (2, True)):
        files = render_files(make_options(tmp_path, num_workers=num_workers), {})
        worker = msgspec.json.decode(files["xds/cds.json"])["resources"][0]
        assert worker["name"] == clusters.WORKER
        assert ("outlier_detection" in worker) is ejects


def test_endpoints_are_sorted_so_that_equal_sets_are_equal_files() -> None:
    a, b = Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)
    assert endpoints_file("worker", [b, a]) == endpoints_file("worker", {a, b})


def test_everything_listens_on_loopback(tmp_path: Path) -> None:
    files = render_files(make_options(tmp_path), {})
    for listener in msgspec.json.decode(files["xds/lds.json"])["resources"]:
        assert listener["address"]["socket_address"]["address"] == "127.0.0.1"
    assert "pipe" in msgspec.json.decode(files["envoy.json"])["admin"]["address"]
