"""The namespace traps that fail silently: a portion that is hidden, a standard module that is shadowed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PORTIONS = SETTINGS["tool"]["hatch"]["build"]["dev-mode-dirs"]


def portions_on_disk() -> set[str]:
    candidates = [
        ROOT / "protos/gen",
        *(ROOT / d for d in ("libs", "kernels", "operator", "client", "simulator")),
        *(ROOT / "services").iterdir(),
    ]
    return {str(c.relative_to(ROOT)) for c in candidates if (c / "shoal").is_dir()}


def test_the_three_lists_of_portions_agree_with_the_disk() -> None:
    packages = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    mypy_path = SETTINGS["tool"]["mypy"]["mypy_path"].split(":")
    assert set(PORTIONS) == portions_on_disk()
    assert {p.removesuffix("/shoal") for p in packages} == set(PORTIONS)
    assert set(mypy_path) - {"tests", "benchmarks"} == set(PORTIONS)  # these two hold no portion


def test_no_namespace_root_is_a_package() -> None:
    roots = [ROOT, *(ROOT / p for p in PORTIONS), *(ROOT / p / "shoal" for p in PORTIONS), ROOT / "services"]
    assert [r for r in roots if (r / "__init__.py").exists()] == []


def test_tests_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_portion_is_typed() -> None:
    packages = [child for p in PORTIONS for child in (ROOT / p / "shoal").iterdir() if child.is_dir()]
    assert [p for p in packages if p.name != "__pycache__" and not (p / "py.typed").exists()] == []


def test_standard_operator_is_imported_and_kernels_is_not_importable() -> None:
    script = (
        "import importlib.util, operator, sys\n"
        "assert 'shoal' not in operator.__file__ and hasattr(operator, 'itemgetter'), operator.__file__\n"
        "assert importlib.util.find_spec('kernels') is None\n"
    )
    result = subprocess.run([sys.executable, "-P", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_operator_the_client_and_the_simulator_do_not_load_torch() -> None:
    modules = "shoal.operator.api, shoal.client.cli, shoal.simulator.replay"
    script = f"import sys, {modules}; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-P", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
