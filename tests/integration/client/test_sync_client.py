from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shoal.api.gateway.v1 import gateway_pb2
from shoal.client import (
    Client,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RetryPolicy,
    Unavailable,
)
from support.fake_gateway import WAIT_S, Fail, FakeGateway, Messages, Reply, recorder


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


def test_a_completion_has_text_ids_usage_and_times(gateway: FakeGateway) -> None:
    gateway.script.append(Reply("Bonjour", bytes_per_chunk=2, cached_tokens=3))
    with Client(gateway.endpoint) as client:
        answer = client.generate("Hello", temperature=0)
    assert answer.text == "Bonjour"
    assert answer.token_ids == tuple(b"Bonjour")
    assert answer.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (5, 7, 3)
    assert (answer.worker, answer.model, answer.request_id) == ("worker-0", "fake", "request-1")
    assert answer.ttft_s is not None
    assert answer.ttft_s > 0
    assert answer.itl_s is not None
    assert answer.message.content == "Bonjour"


def test_a_stream_yields_chunks_in_order(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client, client.stream("x", output="text") as stream:
        chunks = list(stream)
        answer = stream.completion()
    assert [chunk.text for chunk in chunks] == ["Hell", "o fr", "om t", "he m", "esh."]
    assert [chunk.first_token_index for chunk in chunks] == [0, 4, 8, 12, 16]
    assert answer.text == "Hello from the mesh."
    assert answer.token_ids == ()
    assert answer.usage.completion_tokens == 20


def test_leaving_the_block_cancels_the_request(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    with Client(gateway.endpoint) as client:
        with client.stream("x") as stream:
            assert next(stream).text == "Hell"
        assert gateway.calls[0].ended.wait(WAIT_S)
        assert list(stream) == []
        assert stream.completion().text == "Hell"
        assert stream.completion().finish_reason is None


def test_token_id_mode_sends_and_returns_ids_only(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        answer = client.generate(token_ids=[7, 8], max_tokens=5, output="token_ids")
    assert list(gateway.calls[0].request.tokens.ids) == [7, 8]
    assert gateway.calls[0].request.output_format == gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS
    assert (answer.text, answer.token_ids) == ("", tuple(b"Hello"))


def test_several_choices_are_told_apart(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        answer = client.generate("x", n=3, max_tokens=6, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello "] * 3
    assert [len(choice.logprobs) for choice in answer.choices] == [6] * 3
    assert answer.logprobs[0].token is not None
    assert answer.logprobs[0].token.token_id == ord("H")
    assert answer.usage.completion_tokens == 18


def test_retry_info_is_honoured_and_the_answer_comes_from_the_second_try(gateway: FakeGateway) -> None:
    gateway.script.append(Fail(ResourceExhausted("full", retry_after_s=3)))
    waits, sleep = recorder()
    with Client(gateway.endpoint, sleep=sleep) as client:
        assert client.generate("x").text == "Hello from the mesh."
    assert len(gateway.calls) == 2
    assert len(waits) == 1
    assert 3 <= waits[0] <= 3.6


def test_attempts_are_limited(gateway: FakeGateway) -> None:
    gateway.otherwise = Fail(Unavailable("draining", retry_after_s=0.01))
    waits, sleep = recorder()
    with (
        Client(gateway.endpoint, sleep=sleep, retry=RetryPolicy(max_attempts=3)) as client,
        pytest.raises(Unavailable, match="draining"),
    ):
        client.generate("x")
    assert (len(gateway.calls), len(waits)) == (3, 2)


def test_the_budget_is_shared_by_all_calls_of_a_client(gateway: FakeGateway) -> None:
    gateway.otherwise = Fail(Unavailable("draining"))
    _, sleep = recorder()
    with Client(gateway.endpoint, sleep=sleep, retry=RetryPolicy(budget_tokens=10)) as client:
        for _ in range(10):
            with pytest.raises(Unavailable):
                client.generate("x")
    # The first call fails four times (6 tokens left), the second once (5 left: half); then each call is tried once.
    assert len(gateway.calls) == 4 + 9


def test_nothing_is_retried_after_the_first_chunk(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(fail_after=Unavailable("worker gone")))
    with Client(gateway.endpoint) as client, client.stream("x") as stream:
        assert next(stream).text == "Hell"
        with pytest.raises(Unavailable, match="worker gone"):
            next(stream)
        assert list(stream) == []
    assert len(gateway.calls) == 1


def test_errors_are_typed_and_name_the_field(gateway: FakeGateway) -> None:
    gateway.script.append(Fail(InvalidArgument("sampling.top_p", "3 is not in (0, 1]")))
    with Client(gateway.endpoint) as client:
        with pytest.raises(InvalidArgument, match=r"not in \(0, 1\]") as caught:
            client.generate("x", top_p=3)
        assert caught.value.field == "sampling.top_p"
        assert caught.value.__notes__ == ["request id: request-1"]
        with pytest.raises(NotFound, match="there is 'fake'"):
            client.model("other")


def test_the_deadline_reaches_the_server_and_ends_the_call(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    with Client(gateway.endpoint, timeout_s=100) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s; raise timeout_s"):
            client.generate("x", timeout_s=0.3)
        assert gateway.calls[0].time_remaining_s < 2
        assert gateway.calls[0].ended.wait(WAIT_S)
        client.generate("x")
        assert 50 < gateway.calls[1].time_remaining_s < 102


def test_an_endpoint_where_nobody_listens_is_named() -> None:
    _, sleep = recorder()
    with (
        Client("127.0.0.1:1", sleep=sleep) as client,
        pytest.raises(Unavailable, match=r"cannot reach http://127\.0\.0\.1:1: "),
    ):
        client.models()


def test_a_stream_without_its_end_is_an_error(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(finish=False))
    with Client(gateway.endpoint) as client, pytest.raises(Internal, match="before every choice was finished"):
        client.generate("x")


def test_a_gap_in_the_tokens_is_an_error(gateway: FakeGateway) -> None:
    parts = [gateway_pb2.GenerateResponse(first_token_index=i, token_ids=[1]) for i in (0, 2)]
    gateway.script.append(Messages(parts))
    with Client(gateway.endpoint) as client, pytest.raises(Internal, match="token 2 of choice 0 where token 1 was due"):
        client.generate("x")


def test_unary_calls_and_their_retries(gateway: FakeGateway) -> None:
    gateway.unary_errors.append(Unavailable("starting"))
    _, sleep = recorder()
    with Client(gateway.endpoint, api_key="key", sleep=sleep) as client:
        assert client.tokenize("ab") == (1, 97, 98)
        assert client.tokenize("ab", add_special_tokens=False) == (97, 98)
        assert client.tokenize(messages=[{"role": "user", "content": "x"}])[1:] == tuple(b"user:x\n")
        assert client.detokenize([97, 98]) == "ab"
        assert [model.name for model in client.models()] == ["fake"]
        assert client.model("fake").max_model_len == 2048
    assert len(gateway.unary_metadata) == 7
    assert {metadata["authorization"] for metadata in gateway.unary_metadata} == {"Bearer key"}
    assert gateway.unary_metadata[0]["user-agent"].startswith("shoal-client/")


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_call_without_a_deadline_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout_s"):
        Client("127.0.0.1:1", timeout_s=timeout_s)
