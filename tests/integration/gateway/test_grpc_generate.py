"""GatewayService.Generate against a scripted worker, over real gRPC."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.rpc.errors import BY_CODE, InvalidArgument, NotFound, ResourceExhausted, ShoalError, Unavailable
from shoal.rpc.status import from_rpc_error
from support.fake_tokenizer import EOS, FakeTokenizer
from support.fake_worker import MODEL, FakeWorker, Reply, make_messages, serve_fakes
from support.gateway_running import GENERATE, RunningGateway, run_gateway

STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH
IDS = gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS
BOTH = gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS


async def failure(running: RunningGateway, **fields: Any) -> ShoalError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.generate(**fields)
    return from_rpc_error(caught.value)


async def test_text_is_the_default_and_comes_without_token_ids() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("Grüße €", cached_tokens=4)
        messages = await running.generate(text="12345678", request_id="req-1")
    assert "".join(m.text for m in messages) == "Grüße €"
    assert [list(m.token_ids) for m in messages] == [[]] * len(messages)
    first, last = messages[0], messages[-1]
    assert (first.request_id, first.model, first.worker) == ("req-1", MODEL, running.worker.address)
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (8, 4)
    assert (last.finish_reason, last.stop_token_id) == (STOP, EOS)
    assert last.usage.completion_tokens == len("Grüße €".encode()) + 1
    assert all(not m.request_id and not m.model for m in messages[1:])


async def test_a_message_that_completes_no_character_is_not_sent_and_the_next_one_stands_for_it() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("a€b")
        messages = await running.generate(text="x")
    assert [(m.first_token_index, m.text) for m in messages] == [(0, "a"), (1, "€"), (4, "b"), (5, "")]


async def test_token_ids_are_the_workers_bytes_with_the_gateways_fields_in_the_first() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abcd", tokens_per_message=2)
        call = running.channel.unary_stream(GENERATE)(
            gateway_pb2.GenerateRequest(
                tokens=gateway_pb2.TokenPrompt(ids=[1, 2]), output_format=IDS
            ).SerializeToString()
        )
        raw = [m async for m in call]
    messages = [gateway_pb2.GenerateResponse.FromString(m) for m in raw]
    assert [list(m.token_ids) for m in messages] == [[97, 98], [99, 100], [EOS]]
    assert messages[0].worker == running.worker.address
    assert messages[0].request_id
    assert messages[0].model == MODEL
    assert not any(m.text for m in messages)
    rebuilt = gateway_pb2.GenerateResponse(choice=0, first_token_index=2, token_ids=[99, 100])
    assert raw[1] == rebuilt.SerializeToString()


async def test_both_formats_together() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("a€")
        messages = await running.generate(text="x", output_format=BOTH)
    assert b"".join(bytes([i]) for m in messages for i in m.token_ids if i != EOS).decode() == "a€"
    assert "".join(m.text for m in messages) == "a€"
    assert len(messages) == 5


async def test_a_chat_goes_through_the_template() -> None:
    async with run_gateway() as running:
        await running.generate(chat={"messages": [{"role": "user", "content": "hi"}]})
        assert bytes(running.worker.calls[0].request.token_ids) == b"user:hi\n"


async def test_what_the_worker_is_told() -> None:
    async with run_gateway() as running:
        sampling = generation_pb2.SamplingParams(temperature=0.5, seed=7, max_tokens=3)
        await running.generate(text="abc", sampling=sampling, priority=-5, request_id="mine")
        call = running.worker.calls[0]
    assert call.request.sampling == sampling
    assert call.request.priority == -5
    assert call.request.cache_salt == b""
    assert call.request.request_id.startswith("mine/")
    assert call.metadata["x-request-id"] == "mine"
    assert 15 < call.time_remaining_s < 21


@pytest.mark.parametrize("tokens_per_message", [1, 3, 100])
@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_ends_text_and_counts_where_it_is_complete(tokens_per_message: int, include: bool) -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("one STOP two", tokens_per_message=tokens_per_message)
        messages = await running.generate(text="x", stop=["no", "STOP"], include_stop_text=include, output_format=BOTH)
        call = running.worker.calls[0]
        await asyncio.wait_for(call.ended.wait(), 10)
    assert "".join(m.text for m in messages) == ("one STOP" if include else "one ")
    last = messages[-1]
    assert (last.finish_reason, last.stop_text) == (STOP, "STOP")
    assert not last.HasField("stop_token_id")
    assert last.usage.completion_tokens == len("one STOP") == sum(len(m.token_ids) for m in messages)


async def test_a_stop_string_cancels_the_worker() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("ab" * 2000, hold=asyncio.Event())
        messages = await running.generate(text="x", stop=["a"])
        call = running.worker.calls[0]
        await asyncio.wait_for(call.ended.wait(), 10)
        assert call.cancelled
    assert [m.text for m in messages] == [""]


async def test_choices_end_each_for_itself() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc")
        messages = await running.generate(text="x", sampling={"n": 3})
    for choice in range(3):
        mine = [m for m in messages if m.choice == choice]
        assert "".join(m.text for m in mine) == "abc"
        assert [bool(m.finish_reason) for m in mine] == [False] * (len(mine) - 1) + [True]
    assert messages[-1].usage.completion_tokens == 12


async def test_the_last_stopped_choice_carries_the_usage() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abcdef")
        messages = await running.generate(text="xyz", sampling={"n": 2}, stop=["cd"])
    assert [m.choice for m in messages if m.finish_reason] == [0, 1]
    assert messages[-1].usage == generation_pb2.Usage(prompt_tokens=3, completion_tokens=8)
    assert not messages[-2].HasField("usage")


async def test_min_tokens_come_before_any_stop_string() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("aaXaaXaa")
        messages = await running.generate(text="x", sampling={"min_tokens": 4}, stop=["X"])
    assert "".join(m.text for m in messages) == "aaXaa"


async def test_special_tokens_are_shown_when_asked_for() -> None:
    async with run_gateway() as running:
        messages = await running.generate(text="x", include_special_tokens=True)
    assert "".join(m.text for m in messages) == "Hello<eos>"


async def test_an_unfinished_character_at_the_end_shows() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("a€".encode()[:-1], ends_with_eos=False)
        messages = await running.generate(text="x", stop=["zz"])
    assert "".join(m.text for m in messages) == "a\ufffd"
    assert messages[-1].finish_reason == LENGTH


async def test_cancelling_reaches_the_worker() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc", hold=asyncio.Event())
        call = running.stub.Generate(gateway_pb2.GenerateRequest(text="x"))
        assert (await call.read()).text == "a"
        call.cancel()
        upstream = running.worker.calls[0]
        await asyncio.wait_for(upstream.ended.wait(), 10)
        assert upstream.cancelled


async def test_a_deadline_reaches_the_worker_and_comes_back() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(hold_first=asyncio.Event())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.Generate(gateway_pb2.GenerateRequest(text="x"), timeout=0.3).read()
        upstream = running.worker.calls[0]
        await asyncio.wait_for(upstream.ended.wait(), 10)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert upstream.time_remaining_s < 1


async def test_a_full_worker_says_when_to_come_back() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(fail=ResourceExhausted("the queue is full", retry_after_s=2.5))
        error = await failure(running, text="x")
    assert isinstance(error, ResourceExhausted)
    assert error.retry_after_s == 2.5
    assert error.message == "the queue is full"


async def test_a_lost_worker_in_the_middle_is_unavailable() -> None:
    async with run_gateway(max_moves=0) as running:
        running.worker.replies[0] = Reply("abc", finish=False)
        error = await failure(running, text="x")
    assert isinstance(error, Unavailable)
    assert "in the middle" in error.message


async def test_a_connection_cut_in_the_middle_is_unavailable() -> None:
    worker = FakeWorker()
    worker.replies[0] = Reply("abc", hold=asyncio.Event())
    async with AsyncExitStack() as stack:
        tokenizer = await stack.enter_async_context(serve_fakes(tokenizer=FakeTokenizer()))
        workers = await stack.enter_async_context(AsyncExitStack())
        mesh = await workers.enter_async_context(serve_fakes(worker))
        settings: dict[str, Any] = {"mesh_address": mesh, "tokenizer_address": tokenizer, "max_moves": 0}
        running = await stack.enter_async_context(run_gateway(FakeWorker(), **settings))
        call = running.stub.Generate(gateway_pb2.GenerateRequest(text="x"))
        assert (await call.read()).text == "a"
        await workers.aclose()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, Unavailable)
    assert "lost in the middle" in error.message


async def test_a_draining_worker_is_unavailable_in_its_own_words() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(fail=BY_CODE[grpc.StatusCode.UNAVAILABLE]("draining"))
        error = await failure(running, text="x")
    assert isinstance(error, Unavailable)
    assert error.message == "draining"


async def test_an_unknown_model_is_named_with_those_there_are() -> None:
    async with run_gateway() as running:
        error = await failure(running, text="x", model="gpt")
    assert isinstance(error, NotFound)
    assert "'gpt'" in error.message
    assert MODEL in error.message


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({}, "prompt", "text, chat and tokens"),
        ({"text": ""}, "text", "empty"),
        ({"chat": {}}, "chat.messages", "empty"),
        ({"tokens": {}}, "tokens.ids", "empty"),
        ({"tokens": {"ids": [1, 999]}}, "tokens.ids", "999 is outside [0, 257]"),
        ({"text": "x" * 1024}, "text", "1024 tokens leave no room for output in the 1024 tokens"),
        ({"text": "x" * 1000, "sampling": {"max_tokens": 25}}, "sampling.max_tokens", "25 is outside [1, 24]"),
        ({"text": "x", "sampling": {"max_tokens": 0}}, "sampling.max_tokens", "0 is outside"),
        ({"text": "x", "sampling": {"max_tokens": 5, "min_tokens": 6}}, "sampling.min_tokens", "[0, 5]"),
        ({"text": "x", "sampling": {"temperature": float("nan")}}, "sampling.temperature", "nan is outside [0, 2]"),
        ({"text": "x", "sampling": {"top_p": 0}}, "sampling.top_p", "0 is outside (0, 1]"),
        ({"text": "x", "sampling": {"repetition_penalty": 2.5}}, "sampling.repetition_penalty", "(0, 2]"),
        ({"text": "x", "sampling": {"n": 65}}, "sampling.n", "65"),
        ({"text": "x", "sampling": {"logprobs": 21}}, "sampling.logprobs", "21 is outside [0, 20]"),
        ({"text": "x", "sampling": {"logit_bias": {1: float("inf")}}}, "sampling.logit_bias[1]", "[-100, 100]"),
        ({"text": "x", "sampling": {"logit_bias": {9999: 1}}}, "sampling.logit_bias", "9999"),
        ({"text": "x", "sampling": {"stop_token_ids": [258]}}, "sampling.stop_token_ids", "258"),
        ({"text": "x", "stop": ["a"] * 65}, "stop", "65 stop texts; at most 64"),
        ({"text": "x", "stop": ["a", "ü" * 513]}, "stop[1]", "1026 bytes"),
        ({"text": "x", "stop": [""]}, "stop[0]", "0 bytes"),
        ({"text": "x", "stop": ["a"], "output_format": IDS}, "stop", "stop_token_ids"),
        ({"text": "x", "output_format": 9}, "output_format", "9"),
        ({"text": "x", "priority": 101}, "priority", "[-100, 100]"),
        ({"text": "x", "request_id": "a b"}, "request_id", "ASCII"),
    ],
)
async def test_a_bad_field_is_named_before_a_worker_is_called(fields: dict[str, Any], field: str, says: str) -> None:
    async with run_gateway() as running:
        error = await failure(running, **fields)
        assert isinstance(error, InvalidArgument)
        assert error.field == field
        assert says in error.message
        assert running.worker.calls == []


async def test_a_prompt_of_ten_megabytes_is_refused_by_size() -> None:
    async with run_gateway() as running:
        error = await failure(running, text="x" * 10_000_000)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "PAYLOAD_TOO_LARGE"
    assert "8388608" in error.message


async def test_bytes_that_are_no_request_are_refused() -> None:
    async with run_gateway() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.channel.unary_stream(GENERATE)(b"\xff\xff").read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_worker_is_not_relayed() -> None:
    class Skipping(FakeWorker):
        async def _answer(self, request: Any, reply: Reply, context: Any) -> None:
            for index, message in enumerate(make_messages(request, reply)):
                if index != 1:
                    await context.write(message)

    async with run_gateway(Skipping()) as running:
        error = await failure(running, text="x", output_format=IDS)
    assert error.code == grpc.StatusCode.INTERNAL
    assert "where token 1 was due" in error.message
