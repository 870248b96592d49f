from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from shoal.rpc.errors import InvalidArgument
from shoal.simulator.trace import MAX_LINE_BYTES, TRACE_BLOCK, TraceRequest, arrivals_s, read_trace

GOOD = {"timestamp": 3000, "input_length": 1100, "output_length": 52, "hash_ids": [0, 7, 8]}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_requests_come_in_order_of_time_from_plain_and_packed_files(tmp_path: Path) -> None:
    early = GOOD | {"timestamp": 1000, "chunk_hash": "ignored"}
    plain = write(tmp_path / "trace.jsonl", GOOD, "\n", early, GOOD)
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [TraceRequest(t, 1100, 52, (0, 7, 8)) for t in (1000, 3000, 3000)]
    assert read_trace(plain) == read_trace(packed) == expected
    assert read_trace(plain, 1) == expected[1:2]
    assert arrivals_s(expected, 4.0) == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense\n", "line 2: JSON is malformed"),
        ("[1]\n", "line 2: Expected `object`, got `array`"),
        ({"timestamp": 0, "input_length": 1, "output_length": 1}, "line 2: .*missing required field `hash_ids`"),
        (GOOD | {"timestamp": -1}, "line 2: timestamp: Expected `float` >= 0"),
        (GOOD | {"input_length": 0}, "line 2: input_length: Expected `int` >= 1"),
        (GOOD | {"output_length": "52"}, "line 2: output_length: Expected `int`, got `str`"),
        (GOOD | {"hash_ids": [0, -7, 8]}, "line 2: hash_ids.1.: Expected `int` >= 0"),
        (GOOD | {"hash_ids": [0, 7]}, "line 2: hash_ids: 2 ids, but input_length = 1100 begins 3 blocks of 512"),
        ("1" * (MAX_LINE_BYTES + 1), "line 2: longer than 1024 KiB"),
    ],
)
def test_a_wrong_line_is_refused_by_number_and_field(tmp_path: Path, line: object, problem: str) -> None:
    path = write(tmp_path / "trace.jsonl", GOOD, line, GOOD)
    with pytest.raises(InvalidArgument, match=problem):
        read_trace(path)
    assert len(read_trace(path, 1)) == 1


def test_a_file_that_is_cut_or_empty_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"{}" * 1000)[:-20])
    other = write(tmp_path / "other.gz", "not packed")
    empty = write(tmp_path / "empty.jsonl", "\n")
    for path, problem in ((cut, "line 1"), (other, "line 1: Not a gzipped file"), (empty, "holds no request")):
        with pytest.raises(InvalidArgument, match=problem):
            read_trace(path)


def test_equal_hash_ids_are_equal_tokens_and_others_are_not() -> None:
    long = TraceRequest(0, 1100, 1, (0, 7, 8)).token_ids(1000)
    other = TraceRequest(0, 1500, 1, (0, 9, 8)).token_ids(1000)
    assert (len(long), len(other)) == (1100, 1500)
    assert long.dtype == np.int32
    assert 0 <= long.min() < 10
    assert 990 < long.max() < 1000
    assert (long[:TRACE_BLOCK] == other[:TRACE_BLOCK]).all()
    assert (long[2 * TRACE_BLOCK :] == other[2 * TRACE_BLOCK : 1100]).all()
    assert (long[TRACE_BLOCK : 2 * TRACE_BLOCK] == other[TRACE_BLOCK : 2 * TRACE_BLOCK]).mean() < 0.05
