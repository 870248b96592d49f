"""How `shoal status` shows what the API server says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from shoal.client.cli.app import cli
from shoal.client.cli.session import Session
from shoal.client.cli.status import _list, _show

LONG = "the spec is valid; spec.workers.parallelism: workers of this version refuse it [and do not start]; " * 3
SERVICE: dict[str, Any] = {
    "metadata": {"name": "smol", "namespace": "models", "generation": 3, "creationTimestamp": "2020-01-01T00:00:00Z"},
    "spec": {"model": {"name": "org/a-model-with-quite-a-long-name-of-its-own"}},
    "status": {
        "phase": "Degraded",
        "message": LONG,
        "observedGeneration": 2,
        "conditions": [
            {
                "type": "Accepted", "status": "True", "reason": "ValidWithWarnings", "message": LONG,
                "lastTransitionTime": "2020-01-01T00:00:00Z",
            }
        ],
    },
}  # fmt: skip


def shown(*, is_terminal: bool) -> tuple[str, str]:
    """The list, and one service."""
    listed, one = io.StringIO(), io.StringIO()
    _list(_session(listed, is_terminal), [SERVICE], with_namespace=True)
    _show(_session(one, is_terminal), SERVICE, [])
    return listed.getvalue(), one.getvalue()


def _session(file: io.StringIO, is_terminal: bool) -> Session:
    return Session(out=Console(file=file, width=80, force_terminal=is_terminal, no_color=True, highlight=False))


def test_in_a_pipe_a_row_is_a_line_and_nothing_is_cut() -> None:
    listed, one = shown(is_terminal=False)
    assert len(listed.splitlines()) == 2
    assert SERVICE["spec"]["model"]["name"] in listed
    for text in (listed, one):
        assert LONG.strip() in text
        assert all(line == line.rstrip() for line in text.splitlines() if LONG not in line)


def test_on_a_terminal_words_are_wrapped_and_nothing_is_cut() -> None:
    for text in shown(is_terminal=True):
        assert "\u2026" not in text


@pytest.mark.parametrize(("seen", "words"), [(2, "look at 1 change of"), (1, "look at 2 changes of")])
def test_how_far_the_operator_is_behind(seen: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVICE["status"], "observedGeneration", seen)
    assert f"the operator has still to {words} the spec" in shown(is_terminal=False)[1]


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_without_a_kubeconfig_one_line_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = CliRunner().invoke(cli, [command, "--kubeconfig", str(tmp_path / "none")])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: no cluster: ")
    assert caplog.messages == []
