"""Measures the operator against a real API server, scheduler and controllers, and real Envoys.

Run: python benchmarks/operator_cluster.py --json OUT. Each part can be left out with --skip. The control plane is
built from Go modules the first time (`make cluster`). `ratio` is the bar divided by the value: 1 or more is at the bar.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from operator_parts.envoy_moves import measure_moves
from operator_parts.first_token import measure_first_token
from operator_parts.many_services import measure_services
from rows import Row, write_results

PARTS = ("moves", "services", "first_token")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--first-tokens", type=int, default=3)
    parser.add_argument("--skip", choices=PARTS, action="append", default=[])
    arguments = parser.parse_args()
    rows: list[Row] = []
    if "moves" not in arguments.skip:
        rows += measure_moves(arguments.moves)
    if "services" not in arguments.skip:
        rows += asyncio.run(measure_services(arguments.services))
    if "first_token" not in arguments.skip:
        rows += measure_first_token(arguments.first_tokens)
    for row in rows:
        print(f"{row.name:52} {row.value:10.3f} {row.unit:6} {row.peer or 0:10.3f} {row.ratio or 0:7.2f}")
    if arguments.json:
        settings = {"services": arguments.services, "moves": arguments.moves, "first_tokens": arguments.first_tokens}
        write_results(arguments.json, rows, settings)


if __name__ == "__main__":
    main()
