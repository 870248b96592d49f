"""Load reports for Envoy: `xds.service.orca.v3.OpenRcaService`, out of band.

Hand-encoded: `xds-protos` overwrites OpenTelemetry's packages, and these are five fields. Envoy's client-side weighted
round robin weighs a host by rps_fractional / utilization, as an integer, and rejects a report in which either is zero
(both seen in Envoy 1.40): hence tokens a second rather than requests, and the floors.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import grpc

from shoal.model_worker.metrics import LoadMeter, WorkerMetrics
from shoal.rpc.errors import InvalidArgument

SERVICE: Final = "xds.service.orca.v3.OpenRcaService"
MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 60.0
DEFAULT_INTERVAL_S: Final = 1.0
FLOOR: Final = 0.01
MIN_RPS: Final = 1.0

# Tags of xds.data.orca.v3.OrcaLoadReport: (field << 3) | wire type.
_RPS_FRACTIONAL: Final = b"\x31"
_EPS: Final = b"\x39"
_NAMED_METRICS: Final = b"\x42"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What Envoy balances by."""

    rps_fractional: float
    """Generated tokens a second."""
    eps: float
    """Requests a second that failed because of this worker."""
    kv_cache: float
    """Fraction of KV blocks in use."""
    queue: float
    """Waiting work over capacity."""


def encode_report(report: LoadReport) -> bytes:
    """The report as an OrcaLoadReport message, floors applied."""
    return b"".join(
        (
            _RPS_FRACTIONAL + struct.pack("<d", max(MIN_RPS, report.rps_fractional)),
            _EPS + struct.pack("<d", report.eps) if report.eps > 0 else b"",
            _named_metric("kv_cache", max(FLOOR, report.kv_cache)),
            _named_metric("queue", max(FLOOR, report.queue)),
        )
    )


def decode_interval_s(request: bytes) -> float:
    """`report_interval` (field 1, a Duration) of an OrcaLoadReportRequest, kept within sane bounds."""
    for field, value in _fields(request):
        if field == 1 and isinstance(value, bytes):
            parts = {number: part for number, part in _fields(value) if isinstance(part, int)}
            interval_s = parts.get(1, 0) + parts.get(2, 0) / 1e9
            return min(max(interval_s, MIN_INTERVAL_S), MAX_INTERVAL_S)
    return DEFAULT_INTERVAL_S


class OrcaService:
    """Streams a report at the asked interval to each subscriber (one an Envoy and host)."""

    def __init__(self, metrics: WorkerMetrics, *, max_num_seqs: int) -> None:
        self._metrics = metrics
        self._max_num_seqs = max_num_seqs
        self._closed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """For `start_server`."""
        method = grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, {"StreamCoreMetrics": method})

    def close(self) -> None:
        """Ends all streams."""
        self._closed.set()

    async def _stream(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            interval_s = decode_interval_s(request)
        except ValueError as error:
            raise InvalidArgument("report_interval", f"not an OrcaLoadReportRequest: {error}") from None
        meter = LoadMeter(self._metrics)
        while not self._closed.is_set():
            tokens_per_s, errors_per_s = meter.read()
            stats = self._metrics.stats
            queue = stats.num_waiting / self._max_num_seqs
            yield encode_report(LoadReport(tokens_per_s, errors_per_s, self._metrics.kv_usage, queue))
            try:
                await asyncio.wait_for(self._closed.wait(), interval_s)
            except TimeoutError:
                continue


def _named_metric(name: str, value: float) -> bytes:
    key = name.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x11" + struct.pack("<d", value)
    return _NAMED_METRICS + bytes([len(entry)]) + entry


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(field number, value) of a message of varints, fixed-size numbers and bytes. ValueError when it is cut short."""
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            fields.append((tag >> 3, value))
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} is not one of proto3's")
        if at + length > len(data):
            raise ValueError("the message is cut short")
        fields.append((tag >> 3, data[at : at + length]))
        at += length
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("the message is cut short")
