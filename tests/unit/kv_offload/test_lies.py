"""Whatever a store answers, and whatever fails here, the threads that use it go on, and tokens are right."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client import KvClient
from shoal.kv_client.frames import HEADER, Method, pack
from shoal.kv_client.lease import Lease
from shoal.kv_client.link import MappedMemory
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from support.engine_requests import exactly, make_request
from support.lying_store import Lie, LyingStore, lying_store
from support.offload_harness import BLOCK_BYTES, OffloadHarness, offloading

PROMPT = list(range(42))
OTHER = [7, *PROMPT]
NUM_FULL = 40
RESPONSES: dict[Method, type[Message]] = {
    Method.OPEN: pb.OpenResponse,
    Method.MAP: pb.MapResponse,
    Method.LOOKUP: pb.LookupResponse,
    Method.RESERVE: pb.ReserveResponse,
    Method.COMMIT: pb.CommitResponse,
    Method.ACQUIRE: pb.AcquireResponse,
    Method.RELEASE: pb.ReleaseResponse,
    Method.PREFETCH: pb.PrefetchResponse,
}
FIELDS = [(method, field) for method, kind in RESPONSES.items() for field in kind.DESCRIPTOR.fields]
NUMBERS = (0, 1, 2, 3, 7, 42, 4095, 4096, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


def run(h: OffloadHarness, stream_id: int, prompt: list[int] = PROMPT) -> int:
    """Cached tokens of a request on a device without blocks; its output is checked."""
    h.cache.clear()
    return h.run(make_request(stream_id, prompt, sampling=exactly(2)))


def run_until_well(h: OffloadHarness, stream_id: int = 100) -> None:
    """The store is read and written again, within its longest back-off and a probe's time."""
    end_s = time.monotonic() + 5.0
    problem = "?"
    while problem or not run(h, stream_id):  # not all: a store may take one key at a time
        assert time.monotonic() < end_s, h.offload.stats
        h.woken.wait(0.01)
        stream_id += 2
        run(h, stream_id + 1, [stream_id % 50, *PROMPT[:8]])  # something to store
        h.flush()
        problem = h.offload.stats.problem


def spoil(message: Message, field: Any, how: str, number: int) -> Message:
    """The message with another value in one of its fields."""
    values = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_BOOL:
        setattr(message, field.name, not values)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        setattr(message, field.name, b"?" * (number % 64))
    elif not field.is_repeated:
        setattr(message, field.name, number & _mask(field))
    elif how == "shorten":
        del values[-1:]
    elif how == "clear":
        del values[:]
    elif how == "repeat":
        values.extend(list(values))
    elif how == "extend" or not values:
        values.append(number & _mask(field))
    else:
        values[number % len(values)] = number & _mask(field)
    return message


def _mask(field: Any) -> int:
    wide = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
    narrow = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32)
    return (1 << 64) - 1 if field.type in wide else (1 << 32) - 1 if field.type in narrow else (1 << 31) - 1


def lie_about(liar: Method, change: Callable[[Message], Message | bytes]) -> Lie:
    return lambda method, truth: change(truth) if method == liar else truth


LIES = st.one_of(
    st.builds(
        lambda where, how, number: lie_about(where[0], lambda truth: spoil(truth, where[1], how, number)),
        st.sampled_from(FIELDS),
        st.sampled_from(["shorten", "clear", "repeat", "extend", "replace"]),
        st.sampled_from(NUMBERS) | st.integers(0, (1 << 64) - 1),
    ),
    st.builds(
        lambda method, body: lie_about(method, lambda truth: pack(method, body)),
        st.sampled_from(list(RESPONSES)),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda method, answered, status: lie_about(
            method, lambda truth: HEADER.pack(0, answered, status) + truth.SerializeToString()
        ),
        st.sampled_from(list(RESPONSES)),
        st.integers(0, 12),
        st.integers(0, 20),
    ),
)


@settings(max_examples=15, deadline=None)
@given(LIES)
def test_no_answer_ends_a_thread_or_changes_a_token(lie: Lie) -> None:
    with tempfile.TemporaryDirectory() as folder, lying_store(Path(folder) / "kv.sock", BLOCK_BYTES) as store:
        with offloading(Path(folder)) as first:
            run(first, 1)
            first.flush()
        store.lie = lie
        with offloading(Path(folder), timeout_s=0.05, lookup_wait_s=0.05, tokens_per_s=100.0) as second:
            run(second, 1)
            run(second, 2, OTHER)
            second.flush()
            run(second, 3)
            assert second.are_threads_alive
            store.lie = lambda method, truth: truth
            run_until_well(second)


def shorten(field: str) -> Callable[[Message], Message]:
    return lambda message: spoil(message, message.DESCRIPTOR.fields_by_name[field], "shorten", 0)


@pytest.mark.parametrize("field", ["chunks", "slots", "generations", "checksums"])
def test_an_answer_a_field_of_which_is_short_is_a_problem_and_nothing_else(tmp_path: Path, field: str) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store, offloading(tmp_path) as h:
        run(h, 1)
        h.flush()
        store.lie = lie_about(Method.ACQUIRE, shorten(field))
        assert run(h, 2) == 0
        h.offload.report()
        assert "where they are" in h.offload.stats.problem
        assert h.offload.stats.unused == {"nothing_stored": 1, "store": 1}
        run(h, 3)
        h.offload.report()
        assert h.offload.stats.problem, "questions are answered, but nothing else is"
        store.lie = lambda method, truth: truth
        run_until_well(h)


@pytest.mark.parametrize("method", [Method.RESERVE, Method.COMMIT])
def test_a_status_of_a_newer_store_means_not_stored(tmp_path: Path, method: Method) -> None:
    def newer(message: Message) -> Message:
        assert isinstance(message, pb.ReserveResponse | pb.CommitResponse)
        message.statuses[:] = [42] * len(message.statuses)  # type: ignore[list-item]
        if isinstance(message, pb.ReserveResponse):
            del message.staging_blocks[:]
        return message

    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store, offloading(tmp_path) as h:
        store.lie = lie_about(method, newer)
        run(h, 1)
        h.flush()
        assert h.offload.stats.dropped_blocks == {"unknown": 10}
        assert h.offload.stats.problem == ""
        store.lie = lambda method, truth: truth
        run(h, 2, OTHER)
        h.flush()
        assert h.offload.stats.stored_blocks == 11


class FailingMemory(CpuKvMemory):
    """As a GPU without memory for what a codec needs."""

    fails_at = ""

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        for step in super().load(lease, block_ids, mark):
            if self.fails_at == "load" and step.num_blocks == 3:
                raise MemoryError("no 1 MiB")
            yield step

    def store(self, block_ids: Sequence[int], addresses: Sequence[int], target: MappedMemory) -> list[int]:
        if self.fails_at == "store":
            raise MemoryError("no 1 MiB")
        return super().store(block_ids, addresses, target)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda where: monkeypatch.setattr(FailingMemory, "fails_at", where)


def test_a_load_that_fails_on_the_device_keeps_what_it_had_and_later_ones_are_done(
    tmp_path: Path, failing: Callable[[str], None]
) -> None:
    with (
        lying_store(tmp_path / "kv.sock", BLOCK_BYTES),
        offloading(tmp_path, memory=FailingMemory, max_backoff_s=1.0) as h,
    ):
        run(h, 1)
        h.flush()
        failing("load")
        assert run(h, 2) == 8, "two blocks were there"
        h.offload.report()
        stats = h.offload.stats
        assert stats.unused == {"nothing_stored": 1, "error": 1}
        assert stats.errors == {"load": 1}
        assert "MemoryError" in stats.problem
        assert run(h, 3) == 0, "it is not tried again at once"
        assert stats.errors == {"load": 1}
        failing("")
        run_until_well(h)
        assert h.are_threads_alive


def test_blocks_that_cannot_be_read_from_the_device_are_dropped_and_later_ones_stored(
    tmp_path: Path, failing: Callable[[str], None]
) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES), offloading(tmp_path, memory=FailingMemory) as h:
        failing("store")
        run(h, 1)
        h.flush()
        stats = h.offload.stats
        assert set(stats.errors) == {"store"}
        assert stats.dropped_blocks == {"error": 10}
        assert "MemoryError" in stats.problem
        failing("")
        end_s = time.monotonic() + 5.0
        stream_id = 2
        while not stats.stored_blocks:
            assert time.monotonic() < end_s
            run(h, stream_id, [stream_id, *PROMPT])
            h.flush()
            stream_id += 1
        assert stats.problem == ""


def test_a_question_that_fails_here_is_no_answer_and_later_ones_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: KvClient, *rest: object, **more: object) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES), offloading(tmp_path) as h:
        run(h, 1)
        h.flush()
        with monkeypatch.context() as patched:
            for name in ("lookup", "locate"):
                patched.setattr(KvClient, name, fail)
            assert run(h, 2) == 0
            h.offload.report()
            assert h.offload.stats.unused == {"nothing_stored": 1, "error": 1}
            assert h.offload.stats.errors == {"ask": 1}
            assert "zip" in h.offload.stats.problem
            assert h.offload._reader.unanswered_s(time.monotonic()) == 0.0
        run_until_well(h)


def test_an_honest_store_of_this_kind_is_used(tmp_path: Path) -> None:
    with lying_store(tmp_path / "kv.sock", BLOCK_BYTES) as store, offloading(tmp_path) as h:
        run(h, 1)
        h.flush()
        assert run(h, 2) == NUM_FULL
        assert isinstance(store, LyingStore)
        assert h.offload.stats.problem == ""
