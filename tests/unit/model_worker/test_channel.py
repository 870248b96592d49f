from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model_worker.channel import MAX_FRAME_BYTES, ChannelClosed, EngineChannel, pack_frame, read_frame
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored
from shoal.model_worker.messages import Add, Cancel, StepFrame, Stop, decode_command, decode_report, encode
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import SchedulerStats
from shoal.model_worker.step import TokenLogprobs
from support.engine_requests import make_request


@given(bodies=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_frames_arrive_whole_however_the_bytes_do(bodies: list[bytes], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = EngineChannel(theirs)
        data = b"".join(map(pack_frame, bodies))
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        received: list[bytes] = []
        for start, end in itertools.pairwise(edges):
            ours.sendall(data[start:end])
            received += channel.receive(wait=False)
        assert received == bodies


def test_receive_with_wait_blocks_until_a_whole_frame_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pack_frame(b"one") + pack_frame(b"two")[:3])
        assert EngineChannel(theirs).receive(wait=True) == [b"one"]


def test_a_closed_peer_is_noticed_on_both_sides() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = EngineChannel(theirs)
        ours.close()
        for wait in (True, False):
            with pytest.raises(ChannelClosed):
                channel.receive(wait=wait)
        with pytest.raises(ChannelClosed):
            channel.send(b"x")


def test_an_absurd_length_is_refused_before_anything_is_allocated() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack("<I", MAX_FRAME_BYTES + 1))
        with pytest.raises(ValueError, match="at most"):
            EngineChannel(theirs).receive(wait=True)


async def test_the_fronts_end_reads_frames_and_the_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(pack_frame(b"one") + pack_frame(b"two")[:5])
    reader.feed_eof()
    assert await read_frame(reader) == b"one"
    with pytest.raises(ChannelClosed):
        await read_frame(reader)


def test_commands_survive_the_way() -> None:
    sampling = SamplingParams(logit_bias=MappingProxyType({3: -1.5}), stop_token_ids=(4, 5), seed=2**64 - 1)
    request = make_request(7, [1, 2], sampling=sampling, seed=2**64 - 1, deadline_s=3.5, resume=[9])
    assert decode_command(encode(Add(request))) == Add(request)
    assert decode_command(encode(Cancel(2**62))) == Cancel(2**62)
    assert decode_command(encode(Stop())) == Stop()


def test_reports_survive_the_way() -> None:
    entry = TokenLogprobs(5, -0.5, 2, ((4, -0.1), (5, -0.5)))
    events: list[KvEvent] = [Stored((b"k" * 16,), b"p" * 16), Removed((b"k" * 16,)), Cleared()]
    frame = StepFrame(b"", b"", [(1, 2)], [], [], [(1, entry)], [(1, (entry,))], events, SchedulerStats(3), 0.5, 7)
    assert decode_report(encode(frame)) == frame


def test_garbage_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(b"\x91\x09")
