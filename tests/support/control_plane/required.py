"""What tests do where a control plane cannot be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from support.control_plane.binaries import BinariesMissing, find_binaries


def require_binaries() -> dict[str, Path]:
    """Program -> path. Skips the test where there is nothing to build them with; fails it when a build went wrong."""
    try:
        return find_binaries()
    except BinariesMissing as error:
        if error.is_failure:
            raise
        do_without(str(error))


def do_without(reason: str) -> NoReturn:
    """Skips the test, saying why; with SHOAL_REQUIRE_CLUSTER=1, as in CI, it fails: there one must be had."""
    if os.environ.get("SHOAL_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"{reason}; SHOAL_REQUIRE_CLUSTER is 1")
    pytest.skip(reason)
