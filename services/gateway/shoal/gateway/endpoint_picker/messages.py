"""Answers to Envoy, and what its messages say. Names and meanings are those of the extension's proposal 004."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf import struct_pb2

from shoal.api.envoy.v1 import ext_proc_pb2

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
ENDPOINT_KEY: Final = "x-gateway-destination-endpoint"
"""The header, and the key in the namespace LB_NAMESPACE, that name the picked endpoints."""
SERVED_KEY: Final = f"{ENDPOINT_KEY}-served"
"""Where the proxy says, with the response, which endpoint served it."""
SUBSET_KEY: Final = f"{ENDPOINT_KEY}-subset"
LB_NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
BODY_FULL_DUPLEX: Final = 4
_PIECE: Final = 60_000
"""Envoy refuses pieces of a body above 64 KiB."""
_OVERWRITE: Final = 2


def header_values(headers: ext_proc_pb2.HttpHeaders) -> dict[str, str]:
    """By lower-case name; of repeated headers the last."""
    return {
        header.key.lower(): header.raw_value.decode("utf-8", "replace") or header.value
        for header in headers.headers.headers
    }


def subset_hint(request: ext_proc_pb2.ProcessingRequest) -> frozenset[str] | None:
    """The endpoints that may be picked; None when the proxy does not say. A list or a text with commas."""
    namespaces = request.metadata_context.filter_metadata
    if SUBSET_NAMESPACE not in namespaces or SUBSET_KEY not in namespaces[SUBSET_NAMESPACE].fields:
        return None
    value = namespaces[SUBSET_NAMESPACE].fields[SUBSET_KEY]
    texts = [item.string_value for item in value.list_value.values] or value.string_value.split(",")
    return frozenset(stripped for text in texts if (stripped := text.strip()))


def served_endpoint(request: ext_proc_pb2.ProcessingRequest) -> str | None:
    """Who served the request, if the proxy says."""
    namespaces = request.metadata_context.filter_metadata
    if LB_NAMESPACE not in namespaces or SERVED_KEY not in namespaces[LB_NAMESPACE].fields:
        return None
    return namespaces[LB_NAMESPACE].fields[SERVED_KEY].string_value or None


def picked(endpoints: Sequence[str]) -> ext_proc_pb2.ProcessingResponse:
    """Sends the request to the first of `endpoints` that can be reached: as a header and as metadata, alike."""
    text = ",".join(endpoints)
    response = ext_proc_pb2.ProcessingResponse()
    common = response.request_headers.response
    common.clear_route_cache = True
    common.header_mutation.set_headers.append(_set(ENDPOINT_KEY, text))
    inner = struct_pb2.Struct()
    inner[ENDPOINT_KEY] = text
    response.dynamic_metadata.fields[LB_NAMESPACE].struct_value.CopyFrom(inner)
    return response


def body_pieces(body: bytes, *, ends: bool) -> Iterator[ext_proc_pb2.ProcessingResponse]:
    """The request's body, sent on as it came. ends: whether no trailers follow."""
    starts = range(0, len(body), _PIECE) or range(1)
    for start in starts:
        response = ext_proc_pb2.ProcessingResponse()
        piece = response.request_body.response.body_mutation.streamed_response
        piece.body = body[start : start + _PIECE]
        piece.end_of_stream = ends and start == starts[-1]
        yield response


def returned_body(piece: ext_proc_pb2.HttpBody) -> ext_proc_pb2.ProcessingResponse:
    """A piece of a response's body, which full duplex wants back: one that is not sent on is lost."""
    response = ext_proc_pb2.ProcessingResponse()
    streamed = response.response_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = piece.body, piece.end_of_stream
    return response


def passed(kind: str) -> ext_proc_pb2.ProcessingResponse:
    """Lets a part go on unchanged. kind: the field of the request, which the response has as well."""
    response = ext_proc_pb2.ProcessingResponse()
    getattr(response, kind).SetInParent()
    return response


def refused(http_status: int, grpc_status: int, problem: str) -> ext_proc_pb2.ProcessingResponse:
    """Answers in place of a worker."""
    immediate = ext_proc_pb2.ImmediateResponse(
        status=ext_proc_pb2.HttpStatus(code=http_status),
        body=problem.encode(),
        grpc_status=ext_proc_pb2.GrpcStatus(status=grpc_status),
        details="shoal_endpoint_picker",
    )
    immediate.headers.set_headers.append(_set("content-type", "text/plain; charset=utf-8"))
    return ext_proc_pb2.ProcessingResponse(immediate_response=immediate)


def _set(name: str, value: str) -> ext_proc_pb2.HeaderValueOption:
    header = ext_proc_pb2.HeaderValue(key=name, raw_value=value.encode())
    return ext_proc_pb2.HeaderValueOption(header=header, append_action=_OVERWRITE)
