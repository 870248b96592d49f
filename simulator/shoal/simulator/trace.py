"""Traces in Mooncake's format: one JSON object a line, with prompts told as hashes of blocks of 512 tokens.

`{"timestamp": 3000, "input_length": 1100, "output_length": 52, "hash_ids": [0, 7, 8]}`: milliseconds, tokens, tokens,
and one id for each begun block of the prompt. An id stands for a block and for everything before it, so equal ids are
equal prefixes. Source: "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving" and its traces.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, cast

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from shoal.rpc.errors import InvalidArgument

TRACE_BLOCK: Final = 512
"""Tokens that a hash id stands for."""
MAX_LINE_BYTES: Final = 1 << 20
MAX_REQUESTS: Final = 1_000_000
_MAX_LENGTH: Final = 1 << 24

_Length = Annotated[int, Meta(ge=1, le=_MAX_LENGTH)]
_HashId = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class TraceRequest(msgspec.Struct, frozen=True):
    """One line."""

    timestamp: Annotated[float, Meta(ge=0)]
    """Milliseconds since the trace began."""
    input_length: _Length
    output_length: _Length
    hash_ids: tuple[_HashId, ...]

    def token_ids(self, vocab_size: int) -> NDArray[np.int32]:
        """[input_length] made-up tokens below `vocab_size`: always the same for a hash id."""
        blocks = np.array(self.hash_ids, np.uint64) * np.uint64(TRACE_BLOCK)
        positions = (blocks[:, None] + np.arange(TRACE_BLOCK, dtype=np.uint64)).ravel()[: self.input_length]
        mixed: NDArray[Any] = (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        tokens: NDArray[np.int32] = ((mixed >> np.uint64(32)) % np.uint64(vocab_size)).astype(np.int32)
        return tokens


def read_trace(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """The first `limit` requests in order of time. `.gz` is unpacked on the way.

    Raises InvalidArgument naming line and field, and OSError.
    """
    requests = list(_parsed(path, min(limit or MAX_REQUESTS, MAX_REQUESTS)))
    if not requests:
        raise InvalidArgument("trace", f"{path} holds no request")
    return sorted(requests, key=lambda request: request.timestamp)  # stable: equal times stay in the file's order


def arrivals_s(requests: Sequence[TraceRequest], speedup: float) -> list[float]:
    """When each request arrives, in seconds after the first, `speedup` times as fast as in the trace."""
    start = requests[0].timestamp
    return [(request.timestamp - start) / 1e3 / speedup for request in requests]


def _parsed(path: Path, limit: int) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(TraceRequest)
    number = num_read = 0
    with _opened(path) as file:
        while num_read < limit and (line := _line(file, path, number + 1)):
            number += 1
            if not line.strip():
                continue
            yield _checked(decoder, path, number, line)
            num_read += 1


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _line(file: BinaryIO, path: Path, number: int) -> bytes:
    try:
        line = file.readline(MAX_LINE_BYTES + 1)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InvalidArgument("trace", f"{path}, line {number}: {error}") from None
    if len(line) > MAX_LINE_BYTES:
        raise InvalidArgument("trace", f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 10} KiB")
    return line


def _checked(decoder: msgspec.json.Decoder[TraceRequest], path: Path, number: int, line: bytes) -> TraceRequest:
    try:
        request = decoder.decode(line)
    except msgspec.DecodeError as error:  # of the form "Expected `int` >= 1 - at `$.input_length`"
        problem, _, place = str(error).partition(" - at `$")
        field = place.strip("`.")
        raise InvalidArgument("trace", f"{path}, line {number}: {f'{field}: ' if field else ''}{problem}") from None
    num_blocks = -(-request.input_length // TRACE_BLOCK)
    if len(request.hash_ids) != num_blocks:
        raise InvalidArgument(
            "trace",
            f"{path}, line {number}: hash_ids: {len(request.hash_ids)} ids, but input_length = {request.input_length} "
            f"begins {num_blocks} blocks of {TRACE_BLOCK} tokens",
        )
    return request
