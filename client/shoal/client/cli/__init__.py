"""The `shoal` command. One module for each subcommand; `app` finds them, `session` is what they share.

Exit codes: 0 done, 1 it failed (one line on stderr says why and what to do), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os

from shoal.client.cli.app import cli


def main() -> None:
    """Entry point of the `shoal` script."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own log lines would stand between ours
    cli(prog_name="shoal")
