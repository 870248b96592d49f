"""What the gencode must hold that protoc does not check."""

from __future__ import annotations

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2

SHARED_FIELDS = range(1, 16)


def test_worker_and_gateway_messages_share_their_first_fields() -> None:
    """The gateway relays a worker's bytes unparsed, so the numbers must mean the same in both."""
    worker = worker_pb2.GenerateResponse.DESCRIPTOR.fields_by_number
    gateway = gateway_pb2.GenerateResponse.DESCRIPTOR.fields_by_number
    for number in SHARED_FIELDS:
        ours, theirs = worker.get(number), gateway.get(number)
        assert (ours is None) == (theirs is None), number
        if ours is None or theirs is None:
            continue
        assert (ours.name, ours.type, ours.is_repeated) == (theirs.name, theirs.type, theirs.is_repeated)
        assert ours.message_type is theirs.message_type
    assert max(worker) <= max(SHARED_FIELDS), "the worker's own fields must stay below the gateway's"
