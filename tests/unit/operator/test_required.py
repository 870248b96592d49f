"""Tests that need a cluster are skipped where there is none, except where there must be one."""

from __future__ import annotations

import pytest

from support.control_plane.required import do_without


def test_what_is_skipped_here_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_REQUIRE_CLUSTER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Go"):
        do_without("no Go")
    monkeypatch.setenv("SHOAL_REQUIRE_CLUSTER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Go; SHOAL_REQUIRE_CLUSTER is 1"):
        do_without("no Go")
