"""What the endpoint picker answers, message by message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format, struct_pb2

from shoal.api.envoy.v1 import ext_proc_pb2
from shoal.blocks import block_keys, namespace_key
from shoal.gateway.endpoint_picker import messages
from support.eventually import eventually
from support.fake_worker import MODEL, FakeWorker, serve_fakes
from support.gateway_running import RunningGateway, run_gateway, write_workers

PROMPT = "sixteen letters!"
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), list(PROMPT.encode()), 4)
JSON = b'{"model": "%s", "prompt": "%s"}'
Request = ext_proc_pb2.ProcessingRequest
Response = ext_proc_pb2.ProcessingResponse


@dataclass
class Picking:
    """Two workers; the second has PROMPT in its cache."""

    addresses: list[str]
    gateway: RunningGateway
    process: Any

    async def exchange(self, parts: Iterable[Request]) -> list[Response]:
        """Everything that is answered to some messages."""
        call = self.process()
        for part in parts:
            await call.write(part)
        await call.done_writing()
        return [response async for response in call]


@pytest.fixture
async def picking(tmp_path: Path) -> AsyncIterator[Picking]:
    async with AsyncExitStack() as stack:
        workers = [FakeWorker(), FakeWorker()]
        addresses = [await stack.enter_async_context(serve_fakes(worker)) for worker in workers]
        file = tmp_path / "workers.json"
        write_workers(file, addresses)
        settings: dict[str, Any] = {"endpoint_picker": "on", "endpoint_picker_port": 0, "max_request_bytes": 70_000}
        settings |= {"workers_file": str(file), "routing_policy": "prefix_sticky"}
        running = await stack.enter_async_context(run_gateway(FakeWorker(), wait=False, **settings))
        gateway = running.gateway
        await eventually(lambda: gateway.index.workers == set(addresses), "both caches are known")
        await eventually(lambda: gateway.tokenizer.ready, "texts can be encoded")
        gateway.index.store(addresses[1], KEYS)
        assert gateway.endpoint_picker is not None
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.endpoint_picker.port}")
        await stack.enter_async_context(channel)
        process = channel.stream_stream(
            f"/{messages.SERVICE}/Process",
            request_serializer=Request.SerializeToString,
            response_deserializer=Response.FromString,
        )
        yield Picking(addresses, running, lambda: process(timeout=20))


def headers(path: str, *, duplex: bool = True, ends: bool = False, subset: Any = None) -> Request:
    """The first message."""
    request = Request()
    for name, value in ((":path", path), (":method", "POST"), ("x-gateway-destination-endpoint", "6.6.6.6:6")):
        request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    request.request_headers.end_of_stream = ends
    request.protocol_config.request_body_mode = messages.BODY_FULL_DUPLEX if duplex else 0
    if subset is not None:
        hint = struct_pb2.Struct()
        hint[messages.SUBSET_KEY] = subset
        request.metadata_context.filter_metadata[messages.SUBSET_NAMESPACE].CopyFrom(hint)
    return request


def body(data: bytes, *, ends: bool = True) -> Request:
    return Request(request_body=ext_proc_pb2.HttpBody(body=data, end_of_stream=ends))


def served_by(worker: str) -> Request:
    """The response's headers, and who sent them."""
    response = Request(response_headers=ext_proc_pb2.HttpHeaders())
    served = struct_pb2.Struct()
    served[messages.SERVED_KEY] = worker
    response.metadata_context.filter_metadata[messages.LB_NAMESPACE].CopyFrom(served)
    return response


def endpoints_of(response: Response) -> list[str]:
    """By the header, which the metadata must repeat."""
    [option] = response.request_headers.response.header_mutation.set_headers
    assert option.header.key == "x-gateway-destination-endpoint"
    assert option.append_action == 2  # replaces what a client may have sent
    text = option.header.raw_value.decode()
    assert json_format.MessageToDict(response.dynamic_metadata) == {
        "envoy.lb": {"x-gateway-destination-endpoint": text}
    }
    return text.split(",")


async def test_a_text_goes_where_it_is_cached_and_its_body_goes_on_unchanged(picking: Picking) -> None:
    data = JSON % (MODEL.encode(), PROMPT.encode())
    answers = await picking.exchange([headers("/v1/completions"), body(data[:20], ends=False), body(data[20:])])
    assert endpoints_of(answers[0]) == [picking.addresses[1], picking.addresses[0]]
    pieces = [answer.request_body.response.body_mutation.streamed_response for answer in answers[1:]]
    assert b"".join(piece.body for piece in pieces) == data
    assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [True]


async def test_trailers_end_a_body(picking: Picking) -> None:
    data = JSON % (MODEL.encode(), PROMPT.encode())
    trailers = Request(request_trailers=ext_proc_pb2.HttpTrailers())
    answers = await picking.exchange([headers("/v1/completions"), body(data, ends=False), trailers])
    kinds = [answer.WhichOneof("response") for answer in answers]
    assert kinds == ["request_headers", "request_body", "request_trailers"]
    assert not answers[1].request_body.response.body_mutation.streamed_response.end_of_stream


@pytest.mark.parametrize("subset", ["", "{0}", " {0} , 6.6.6.6:6", ["{0}", "6.6.6.6:6"]])
async def test_only_the_subset_is_picked(picking: Picking, subset: str | list[str]) -> None:
    [first, _] = picking.addresses
    hint: Any = [s.format(first) for s in subset] if isinstance(subset, list) else subset.format(first)
    answers = await picking.exchange(
        [headers("/v1/completions", subset=hint), body(JSON % (MODEL.encode(), PROMPT.encode()))]
    )
    if subset:
        assert endpoints_of(answers[0]) == [first]
    else:
        [answer] = answers
        assert answer.immediate_response.status.code == 503
        assert answer.immediate_response.grpc_status.status == 14
        assert answer.immediate_response.body == b"no worker is ready among the 0 that may be picked"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([headers("/v1/completions"), body(JSON % (b"other", b"x"))], 404),
        ([headers("/v1/completions"), body(b"x" * 40_000, ends=False), body(b"x" * 40_000)], 413),
    ],
)
async def test_what_cannot_be_picked_is_refused(picking: Picking, parts: list[Request], code: int) -> None:
    [answer] = await picking.exchange(parts)
    assert answer.immediate_response.status.code == code


@pytest.mark.parametrize(
    "parts",
    [
        [headers("/v1/models", ends=True)],
        [headers("/v1/completions", duplex=False)],
        [headers("/elsewhere"), body(b"anything")],
        [headers("/v1/chat/completions"), body(b"{not json")],
        [headers("/shoal.api.worker.v1.ModelWorkerService/Generate"), body(b"\1\0\0\0\1x")],
        [headers("/shoal.api.worker.v1.ModelWorkerService/Generate"), body(b"\0\0\0\0\7cut")],
    ],
)
async def test_what_cannot_be_read_goes_by_load(picking: Picking, parts: list[Request]) -> None:
    answers = await picking.exchange(parts)
    assert sorted(endpoints_of(answers[0])) == sorted(picking.addresses)


async def test_a_request_counts_until_its_stream_ends(picking: Picking) -> None:
    loads, [first, second] = picking.gateway.gateway.loads, picking.addresses
    call = picking.process()
    for part in (headers("/v1/completions"), body(JSON % (MODEL.encode(), PROMPT.encode()))):
        await call.write(part)
    assert endpoints_of(await call.read())[0] == second
    assert loads.of(second).num_requests == 1
    await call.write(served_by(first))  # the proxy had to go elsewhere
    await eventually(lambda: loads.of(first).num_requests == 1, "it counts where it is served")
    assert loads.of(second).num_requests == 0
    call.cancel()
    await eventually(lambda: loads.of(first).num_requests == 0, "it counts no more")


@pytest.mark.parametrize("follows", [True, False])
async def test_the_prompt_is_expected_where_it_was_served(picking: Picking, follows: bool) -> None:
    prompt = "nobody has this.." * 2
    keys = block_keys(namespace_key("d1" * 32, "fake-v1"), list(prompt.encode()), 4)
    index = picking.gateway.gateway.index
    call = picking.process()
    for part in (headers("/v1/completions"), body(JSON % (MODEL.encode(), prompt.encode()))):
        await call.write(part)
    picked = endpoints_of(await call.read())
    assert index.match(keys) == {picked[0]: len(keys)}
    worker = picked[0] if follows else picked[1]
    await call.write(served_by(worker))
    await eventually(lambda: index.match(keys) == {worker: len(keys)}, "it is expected there, and there only")
    call.cancel()
