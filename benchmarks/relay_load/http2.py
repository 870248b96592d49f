"""As much of HTTP/2 as a relayed gRPC stream needs, written ahead: a gRPC library would be slower than the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK = 1, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header_block(*fields: tuple[str, str]) -> bytes:
    """HPACK without indexing or Huffman codes (RFC 7541, section 6.2.2)."""
    return b"".join(b"\x00" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in fields)


def grpc_message(data: bytes) -> bytes:
    """A message with gRPC's length prefix."""
    return b"\x00" + len(data).to_bytes(4, "big") + data


class Http2(asyncio.Protocol):
    """Splits what arrives into frames and answers the housekeeping ones."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self.window = 65_535
        self._buffer = b""
        self.open()

    def open(self) -> None:
        """Sends the first frames."""

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame that is not housekeeping."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        buffer = self._buffer + data
        position, end = self.skip_preface(buffer), len(buffer)
        while end - position >= 9:
            size = int.from_bytes(buffer[position : position + 3], "big")
            if end - position < 9 + size:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + 9], "big")
            payload = buffer[position + 9 : position + 9 + size]
            position += 9 + size
            if kind == SETTINGS and not flags & ACK:
                self.transport.write(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.transport.write(frame(PING, ACK, 0, payload))
            elif kind == WINDOW_UPDATE and not stream:
                self.window += int.from_bytes(payload, "big")
                self.on_frame(kind, flags, stream, payload)
            else:
                self.on_frame(kind, flags, stream, payload)
        self._buffer = buffer[position:]

    def skip_preface(self, buffer: bytes) -> int:
        """Where frames begin in `buffer`."""
        return 0
