"""Resume tokens: what goes in comes out, and nothing else does."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.gateway.v1 import gateway_pb2, resume_token_pb2
from shoal.client import InvalidArgument
from shoal.client.resume_tokens import MAX_BYTES, decode_token, encode_token


def make_token(num_choices: int = 2) -> resume_token_pb2.ResumeToken:
    token = resume_token_pb2.ResumeToken(request=gateway_pb2.GenerateRequest(text="Once"), hides_token_ids=True)
    token.request.sampling.n = num_choices
    for choice in range(num_choices):
        token.received.add(choice=choice, token_ids=[1, 2, 3], text="abc", seed=7)
    return token


def sealed(body: bytes, version: int = 1) -> bytes:
    return struct.pack(">5sBI", b"shoal", version, zlib.crc32(body)) + body


def test_a_token_comes_back() -> None:
    assert decode_token(encode_token(make_token())) == make_token()
    assert encode_token(make_token()) == sealed(make_token().SerializeToString()), "the format that the proto describes"


@given(st.data())
def test_a_damaged_token_is_refused(data: st.DataObject) -> None:
    token = bytearray(encode_token(make_token()))
    place = data.draw(st.integers(0, len(token) - 1))
    token[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidArgument) as caught:
        decode_token(bytes(token))
    assert caught.value.field == "token"


@given(st.binary(max_size=64))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        decode_token(data)


def contradicting() -> list[tuple[resume_token_pb2.ResumeToken, str]]:
    missing, late, nested = make_token(), make_token(), make_token()
    del missing.received[0]
    late.received[1].first_token_index = 1
    nested.request.resume.cached_tokens = 1
    return [
        (missing, r"completions \[1\] of a request for 2"),
        (late, "without its beginning"),
        (nested, "itself a resumed one"),
    ]


@pytest.mark.parametrize(("token", "problem"), contradicting())
def test_contents_that_contradict_each_other_are_refused(token: resume_token_pb2.ResumeToken, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        decode_token(encode_token(token))


def test_what_is_wrong_is_said() -> None:
    body = make_token().SerializeToString()
    with pytest.raises(InvalidArgument, match="has version 2, and this SDK reads version 1"):
        decode_token(sealed(body, version=2))
    with pytest.raises(InvalidArgument, match="is damaged"):
        decode_token(sealed(b"\xff" * 9))
    with pytest.raises(InvalidArgument, match="more than the"):
        decode_token(bytes(MAX_BYTES + 1))
    with pytest.raises(InvalidArgument, match="str is not bytes"):
        decode_token("shoal")  # type: ignore[arg-type]
