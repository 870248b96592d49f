"""Resume tokens as bytes that an application may keep. The format is described in `resume_token.proto`."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from google.protobuf.message import DecodeError

from shoal.api.gateway.v1 import resume_token_pb2
from shoal.rpc.errors import InvalidArgument

MAX_BYTES: Final = 64 << 20
"""As much as a message may have."""
_HEADER: Final = struct.Struct(">5sBI")
_MAGIC: Final = b"shoal"
_VERSION: Final = 1
_FIELD: Final = "token"


def encode_token(token: resume_token_pb2.ResumeToken) -> bytes:
    """Bytes for `decode_token`, of this version or a later one."""
    body = token.SerializeToString()
    return _HEADER.pack(_MAGIC, _VERSION, zlib.crc32(body)) + body


def decode_token(data: bytes) -> resume_token_pb2.ResumeToken:
    """Reads and checks a token. Raises InvalidArgument when it is none, is damaged, or is of another version."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidArgument(_FIELD, f"{type(data).__name__} is not bytes: give what Stream.resume_token returned")
    data = bytes(data)
    if len(data) > MAX_BYTES:
        raise InvalidArgument(_FIELD, f"{len(data)} bytes are more than the {MAX_BYTES} that a token can have")
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise InvalidArgument(_FIELD, "not a resume token: give what Stream.resume_token returned")
    _, version, checksum = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise InvalidArgument(_FIELD, f"has version {version}, and this SDK reads version {_VERSION}; update it")
    body = data[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise InvalidArgument(_FIELD, "is damaged: its checksum does not match")
    try:
        token = resume_token_pb2.ResumeToken.FromString(body)
    except DecodeError as error:
        raise InvalidArgument(_FIELD, f"is damaged: {error}") from None
    _check(token)
    return token


def _check(token: resume_token_pb2.ResumeToken) -> None:
    """What a right checksum does not say."""
    num_choices = max(1, token.request.sampling.n)
    choices = [message.choice for message in token.received]
    if choices and choices != list(range(num_choices)):
        raise InvalidArgument(_FIELD, f"holds completions {choices} of a request for {num_choices}")
    if any(message.first_token_index for message in token.received):
        raise InvalidArgument(_FIELD, "holds a completion without its beginning")
    if token.request.HasField("resume"):
        raise InvalidArgument(_FIELD, "holds a request that is itself a resumed one")
