"""The `shoal-kv-store` command."""

from __future__ import annotations


def main() -> None:
    """Runs the store until SIGTERM."""
    raise SystemExit("shoal-kv-store: not built yet")


if __name__ == "__main__":
    main()
