"""Who an error comes from, as Envoy 1.40 and gRPC say it: a worker that had the request, or nobody."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from shoal.gateway.upstream import Lost, Unreached, UpstreamCall
from shoal.rpc.errors import ShoalError

ENVOY = (("date", "Sun, 22 Nov 2026 12:16:10 GMT"), ("server", "envoy"))
WORKER = (("x-shoal-served-by", "10.0.0.1:50051"), *ENVOY)
CONNECT = "upstream connect error or disconnect/reset before headers. "


class Failing:
    """A call that ends with an error."""

    def __init__(self, error: grpc.aio.AioRpcError, num_messages: int) -> None:
        self._error = error
        self._num_messages = num_messages

    async def read(self) -> bytes:
        if self._num_messages:
            self._num_messages -= 1
            return b""
        raise self._error


@pytest.mark.parametrize(
    ("code", "details", "initial", "trailing", "num_messages", "kind"),
    [
        (
            "UNAVAILABLE",
            CONNECT + "retried and the latest reset reason: remote connection failure",
            (),
            ENVOY,
            0,
            Unreached,
        ),
        ("UNAVAILABLE", "no healthy upstream", (), ENVOY, 0, Unreached),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: refused", (), (), 0, Unreached),
        ("UNAVAILABLE", CONNECT + "reset reason: connection termination", (), WORKER, 0, Lost),
        ("UNAVAILABLE", "Socket closed", (), (), 0, Lost),
        ("INTERNAL", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))", WORKER, (), 0, Lost),
        ("INTERNAL", "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))", WORKER, (), 2, Lost),
        ("UNAVAILABLE", "failed to connect to all addresses", (), (), 1, Lost),
    ],
)
async def test_whether_a_worker_had_the_request(
    code: str,
    details: str,
    initial: tuple[tuple[str, str], ...],
    trailing: tuple[tuple[str, str], ...],
    num_messages: int,
    kind: type[ShoalError],
) -> None:
    first, last = grpc.aio.Metadata(*initial), grpc.aio.Metadata(*trailing)
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], first, last, details, None)
    call = UpstreamCall(Failing(error, num_messages))
    for _ in range(num_messages):
        await call.read()
    with pytest.raises(kind) as caught:
        await call.read()
    assert type(caught.value) is kind
    assert call.failed_at() == ("10.0.0.1:50051" if WORKER in (initial, trailing) else "")
