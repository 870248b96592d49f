"""Fields 1 to 15 of both GenerateResponse messages mean the same, which relaying bytes depends on (ADR 0005)."""

from __future__ import annotations

from typing import Any

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2

WORKER = worker_pb2.GenerateResponse.DESCRIPTOR
GATEWAY = gateway_pb2.GenerateResponse.DESCRIPTOR
LAST_SHARED = 15


def meaning(field: Any) -> tuple[Any, ...]:
    nested = field.message_type or field.enum_type
    return (field.name, field.number, field.type, field.is_repeated, field.has_presence, nested and nested.full_name)


def test_shared_fields_are_the_same() -> None:
    worker = {f.number: meaning(f) for f in WORKER.fields}
    gateway = {f.number: meaning(f) for f in GATEWAY.fields if f.number <= LAST_SHARED}
    assert worker == gateway
    assert max(worker) <= LAST_SHARED


def test_the_gateways_own_fields_begin_above() -> None:
    own = {f.name for f in GATEWAY.fields if f.number > LAST_SHARED}
    assert own == {"text", "stop_text", "request_id", "worker", "model", "seed"}


def test_appended_fields_merge() -> None:
    raw = worker_pb2.GenerateResponse(choice=1, token_ids=[5, 6], stop_token_id=6).SerializeToString()
    header = gateway_pb2.GenerateResponse(request_id="r", worker="w", model="m").SerializeToString()
    merged = gateway_pb2.GenerateResponse.FromString(raw + header)
    assert (merged.choice, list(merged.token_ids), merged.stop_token_id) == (1, [5, 6], 6)
    assert (merged.request_id, merged.worker, merged.model) == ("r", "w", "m")
