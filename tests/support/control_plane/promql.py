"""Prometheus' own parser of queries, as a program: built like the control plane, once."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from support.control_plane.binaries import cache_dir, making, run_go

_MODULE: Final = "module shoal.dev/promql\ngo 1.26.0\nrequire github.com/prometheus/prometheus v0.316.0\n"
_PROGRAM: Final = """package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	queries := parser.NewParser(parser.Options{})
	for lines.Scan() {
		if _, err := queries.ParseExpr(lines.Text()); err != nil {
			fmt.Printf("%s: %v\\n", lines.Text(), err)
		}
	}
}
"""


def find_query_errors(queries: Sequence[str]) -> list[str]:
    """What Prometheus would not understand of queries of one line each.

    Raises BinariesMissing where the parser cannot be built.
    """
    assert not [query for query in queries if "\n" in query]
    program = _built() / "promql"
    text = "\n".join(queries)
    done = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def _built() -> Path:
    digest = hashlib.sha256((_MODULE + _PROGRAM).encode()).hexdigest()[:12]
    folder = cache_dir() / f"promql-{digest}"
    if not folder.is_dir():
        with making(folder) as work:
            if work is not None:
                (work / "go.mod").write_text(_MODULE)
                (work / "main.go").write_text(_PROGRAM)
                run_go(["build", "-mod=mod", "-p=2", "-trimpath", "-ldflags=-s -w", "-o", "promql", "."], work)
    return folder
