"""Moves domain errors over the wire as `google.rpc.Status` with ErrorInfo, BadRequest and RetryInfo details."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shoal.rpc.errors import BY_CODE, BY_REASON, Internal, ShoalError

DOMAIN = "shoal.dev"
_DETAILS_KEY = "grpc-status-details-bin"


def to_status(error: ShoalError, request_id: str = "") -> grpc.Status:
    """What a servicer aborts with (`context.abort_with_status`)."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if request_id:
        info.metadata["request_id"] = request_id
    details: list[any_pb2.Any] = [_pack(info)]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=error.code.value[0], message=error.message, details=details)
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> ShoalError:
    """The domain error behind a failed call, from our own services or from anything else that speaks gRPC (Envoy)."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code, message = error.code(), error.details() or ""
    reason, field, retry_after_s, request_id = "", None, None, ""
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, request_id = info.reason, info.metadata.get("request_id", "")
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = bad.field_violations[0].field if bad.field_violations else None
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    kind = BY_REASON.get(reason) or BY_CODE.get(code, Internal)
    result = kind.__new__(kind)
    ShoalError.__init__(result, message or code.name, retry_after_s=retry_after_s, field=field)
    if request_id:
        result.add_note(f"request id: {request_id}")
    return result


def has_details(error: grpc.RpcError) -> bool:
    """Whether one of our own services ended the call, and not the transport or a proxy."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailers: Any = error.trailing_metadata() or ()
    return any(key == _DETAILS_KEY for key, _ in trailers)


def _details(error: grpc.Call | grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    trailers: Any = error.trailing_metadata() or ()  # pairs; the stubs miss that
    for key, value in trailers:
        if key == _DETAILS_KEY:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:  # a proxy's or a stranger's bytes: the status line still counts
                return []
    return []


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
