"""What tests do where a control plane cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.control_plane.binaries import BinariesMissing, find_binaries


def require_binaries() -> dict[str, Path]:
    """Program -> path. Skips the test where there is nothing to build them with; fails it when a build went wrong."""
    try:
        return find_binaries()
    except BinariesMissing as error:
        if error.is_failure:
            raise
        pytest.skip(str(error))
