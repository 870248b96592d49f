"""What crosses between the gRPC front and the engine process: msgpack structs, never pickles."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import msgspec

from shoal.model_worker.engine_failure import EngineFailure
from shoal.model_worker.failure import Failure
from shoal.model_worker.kv_cache import KvEvent
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler import Finished, SchedulerStats
from shoal.model_worker.step import TokenLogprobs


class Add(msgspec.Struct, array_like=True, tag=1):
    """Front to engine: queue a request. Answered by its tokens, or by an entry in `StepFrame.failed`."""

    request: Request


class Cancel(msgspec.Struct, array_like=True, tag=2):
    """Front to engine: nobody waits for this request any more. Takes effect before the next step."""

    stream_id: int


class Stop(msgspec.Struct, array_like=True, tag=3):
    """Front to engine: end the process."""


Command = Add | Cancel | Stop


class EngineInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the engine turned out to be once its model was loaded."""

    model_digest: str
    kv_layout: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    device: str
    dtype: str


class Loading(msgspec.Struct, array_like=True, tag=1):
    """Engine to front: how far the start has come."""

    stage: str
    fraction: float
    """In [0, 1]."""


class Ready(msgspec.Struct, array_like=True, tag=2):
    """Engine to front: requests may come."""

    info: EngineInfo


class Broken(msgspec.Struct, array_like=True, tag=3):
    """Engine to front: the engine ends now, for this reason."""

    failure: EngineFailure


class StepFrame(msgspec.Struct, array_like=True, tag=4):
    """Engine to front: everything that one turn of the loop produced, for all requests."""

    stream_ids: bytes
    """[R] int64, native order: whose token."""
    token_ids: bytes
    """[R] int32, native order."""
    started: list[tuple[int, int]]
    finished: list[Finished]
    failed: list[tuple[int, Failure]]
    logprobs: list[tuple[int, TokenLogprobs]]
    prompt_logprobs: list[tuple[int, tuple[TokenLogprobs, ...]]]
    kv_events: list[KvEvent]
    stats: SchedulerStats
    step_s: float
    """Time the runner took; 0 when no step ran."""
    num_step_tokens: int
    kv_store: KvStoreStats | None = None
    """Counters of the use of a KV store, when they may have changed."""


Report = Loading | Ready | Broken | StepFrame


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} does not cross to another process")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: Command | Report) -> bytes:
    """The frame body of a message."""
    return _encoder.encode(message)


def decode_command(body: bytes | bytearray | memoryview) -> Command:
    """Raises msgspec.DecodeError."""
    return _command_decoder.decode(body)


def decode_report(body: bytes | bytearray | memoryview) -> Report:
    """Raises msgspec.DecodeError."""
    return _report_decoder.decode(body)
