"""Streams that lose their gateway: the SDK asks for the rest, and the caller sees one answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from shoal.api.gateway.v1 import gateway_pb2
from shoal.client import (
    AsyncClient,
    Cancelled,
    Chunk,
    Client,
    Completion,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RetryPolicy,
    ShoalError,
    Unavailable,
)
from shoal.rpc.errors import StreamLost
from support.fake_gateway import Fail, FakeGateway, Messages, Reply, recorder

GOOD = Reply(seed=5, cached_tokens=3)
LOST = replace(GOOD, fail_after=Unavailable("the gateway is going down", retry_after_s=0.001))
OPTIONS: dict[str, Any] = {"n": 2, "logprobs": 1, "max_tokens": 40}
QUICK = RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.01)


def read(client: Client, **options: Any) -> tuple[list[Chunk], Completion]:
    with client.stream("Once", **options) as stream:
        return list(stream), stream.completion()


def without_times(answer: Completion) -> Completion:
    return replace(answer, ttft_s=None, itl_s=None)


@pytest.mark.parametrize("output", ["both", "text", "token_ids"])
@pytest.mark.parametrize("num_losses", [1, 3])
def test_the_caller_sees_one_answer(output: str, num_losses: int) -> None:
    with FakeGateway(otherwise=GOOD) as gateway, Client(gateway.endpoint, retry=QUICK) as client:
        whole, expected = read(client, output=output, **OPTIONS)
        gateway.script.extend([LOST] * num_losses)
        chunks, answer = read(client, output=output, **OPTIONS)
    assert chunks == whole
    assert without_times(answer) == without_times(expected)
    assert expected.seed == 5
    assert bool(answer.token_ids) is (output != "text")
    first, resumed = gateway.calls[1].request, gateway.calls[2].request
    assert not first.HasField("resume")
    assert (resumed.text, resumed.sampling.seed, resumed.request_id, resumed.model) == ("Once", 5, "request-1", "fake")
    assert [list(had.token_ids) for had in resumed.resume.completions] == [list(b"Hell")] * 2
    assert resumed.resume.cached_tokens == 3
    assert len(gateway.calls) == 2 + num_losses


async def test_the_asynchronous_client_does_the_same() -> None:
    with FakeGateway(otherwise=GOOD) as gateway:
        async with AsyncClient(gateway.endpoint, retry=QUICK) as client:
            expected = await client.generate("Once", **OPTIONS)
            gateway.script.append(LOST)
            async with client.stream("Once", **OPTIONS) as stream:
                token = stream.resume_token
                answer = await stream.completion()
            assert without_times(answer) == without_times(expected)
            async with client.resume(token) as again:
                assert without_times(await again.completion()) == without_times(expected)
        with pytest.raises(Cancelled, match="the client is closed"):
            await client.generate("Once")


def test_a_connection_that_breaks_is_a_loss() -> None:
    with FakeGateway(Reply(seed=5, hold=threading.Event())) as first, Client(first.endpoint, retry=QUICK) as client:
        with client.stream("Once") as stream:
            assert next(stream).text == "Hell"
            token = stream.resume_token
            first.__exit__()  # every call is cut off, without a word from the gateway
            with pytest.raises(ShoalError):
                next(stream)
        assert len(first.calls) == 1, "nobody was there to be asked again"
    with FakeGateway(otherwise=GOOD) as second, Client(second.endpoint) as client, client.resume(token) as stream:
        assert [chunk.text for chunk in stream] == ["o fr", "om t", "he m", "esh."]
        assert stream.completion().text == "Hello from the mesh."
        assert stream.completion().usage.completion_tokens == 20


@pytest.mark.parametrize(
    "error",
    [Internal("2 workers died of it"), InvalidArgument("prompt", "none"), StreamLost("it was lost 6 times in a row")],
)
def test_what_another_try_would_not_mend_is_raised(error: ShoalError) -> None:
    with FakeGateway(replace(GOOD, fail_after=error)) as gateway, Client(gateway.endpoint, retry=QUICK) as client:
        with pytest.raises(type(error), match=error.message):
            client.generate("Once")
        assert len(gateway.calls) == 1


def test_a_full_gateway_is_asked_again_when_it_says() -> None:
    waits, sleep = recorder()
    with FakeGateway(LOST, Fail(ResourceExhausted("full", retry_after_s=2)), otherwise=GOOD) as gateway:
        with Client(gateway.endpoint, sleep=sleep) as client:
            assert client.generate("Once").text == "Hello from the mesh."
        assert [call.request.HasField("resume") for call in gateway.calls] == [False, True, True]
    assert 2 <= waits[1] <= 2.4


def test_losses_without_progress_have_an_end() -> None:
    policy = replace(QUICK, max_resumes=3)
    with FakeGateway(LOST, otherwise=Fail(Unavailable("gone", retry_after_s=0.001))) as gateway:
        with Client(gateway.endpoint, retry=policy) as client, client.stream("Once") as stream:
            next(stream)
            with pytest.raises(Unavailable, match="gone"):
                next(stream)
            assert list(stream) == []
            assert stream.completion().text == "Hell", "what came is kept"
        assert len(gateway.calls) == 1 + 3


@pytest.mark.parametrize("options", [{"resumable": False}, {}])
def test_it_can_be_turned_off_for_a_stream_or_a_client(options: dict[str, Any]) -> None:
    policy = RetryPolicy() if options else RetryPolicy(max_resumes=0)
    with FakeGateway(otherwise=LOST) as gateway, Client(gateway.endpoint, retry=policy) as client:
        with client.stream("Once", output="text", **options) as stream:
            assert next(stream).text == "Hell"
            with pytest.raises(InvalidArgument, match="resumable"):
                _ = stream.resume_token
            with pytest.raises(Unavailable):
                next(stream)
        assert [call.request.output_format for call in gateway.calls] == [gateway_pb2.OUTPUT_FORMAT_TEXT]


def test_a_loss_after_the_end_is_none() -> None:
    reply = replace(GOOD, text="Hell", fail_after=Unavailable("too late"))
    with FakeGateway(reply) as gateway, Client(gateway.endpoint) as client:
        assert client.generate("Once").text == "Hell"
        assert len(gateway.calls) == 1


def test_a_server_that_repeats_itself_is_caught() -> None:
    forgetful = Messages([gateway_pb2.GenerateResponse(token_ids=[1], text="H", seed=5)])
    with (
        FakeGateway(LOST, otherwise=forgetful) as gateway,
        Client(gateway.endpoint, retry=QUICK) as client,
        pytest.raises(Internal, match="token 0 of choice 0 where token 4 was due"),
    ):
        client.generate("Once")


def test_a_token_holds_everything_up_to_its_chunk_and_may_be_used_twice() -> None:
    with FakeGateway(otherwise=GOOD) as gateway, Client(gateway.endpoint) as client:
        expected = client.generate("Once", output="text", **OPTIONS)
        with client.stream("Once", output="text", **OPTIONS) as stream:
            at_first = stream.resume_token
            tokens = [stream.resume_token for _ in stream]
        num_calls = len(gateway.calls)
        for token in (at_first, *tokens, tokens[2]):
            with client.resume(token, timeout_s=30) as again:
                assert without_times(again.completion()) == without_times(expected)
        # The last token is of an answer that is complete: nobody is asked.
        assert len(gateway.calls) == num_calls + 1 + len(tokens)
        assert not gateway.calls[num_calls].request.HasField("resume"), "nothing had come yet"


def test_a_resumed_stream_is_itself_resumed() -> None:
    with FakeGateway(GOOD, LOST, otherwise=GOOD) as gateway, Client(gateway.endpoint, retry=QUICK) as client:
        with client.stream("Once") as stream:
            next(stream)
            token = stream.resume_token
        with client.resume(token) as stream:
            assert next(stream).text == "o fr"
            assert next(stream).text == "om t"
            with client.resume(stream.resume_token) as third:
                assert third.completion().text == "Hello from the mesh."
