import math

import pytest

from shoal.api.generation.v1.generation_pb2 import SamplingParams as Message
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.sampling.validate import from_proto
from shoal.rpc.errors import InvalidArgument


def parse(message: Message, field: str = "sampling") -> SamplingParams:
    return from_proto(message, vocab_size=1000, max_model_len=128, num_prompt_tokens=28, field=field)


def test_an_empty_message_means_the_defaults() -> None:
    assert parse(Message()) == SamplingParams(max_tokens=100)


def test_every_field_is_carried_over() -> None:
    message = Message(
        temperature=0.5, top_p=0.75, top_k=40, min_p=0.25, typical_p=0.5, frequency_penalty=-2, presence_penalty=2,
        repetition_penalty=1.25, logit_bias={3: -100, 999: 100}, max_tokens=50, min_tokens=50, stop_token_ids=[7, 999],
        ignore_eos=True, seed=2**64 - 1, n=64, logprobs=0, prompt_logprobs=20,
    )  # fmt: skip
    assert parse(message) == SamplingParams(
        temperature=0.5, top_p=0.75, top_k=40, min_p=0.25, typical_p=0.5, frequency_penalty=-2.0, presence_penalty=2.0,
        repetition_penalty=1.25, logit_bias={3: -100.0, 999: 100.0}, max_tokens=50, min_tokens=50,
        stop_token_ids=(7, 999), ignore_eos=True, seed=2**64 - 1, n=64, logprobs=0, prompt_logprobs=20,
    )  # fmt: skip


def test_zero_is_not_unset_where_presence_is_known() -> None:
    parsed = parse(Message(temperature=0, seed=0, logprobs=0))
    assert parsed.greedy
    assert parsed.seed == 0
    assert parsed.logprobs == 0


def test_top_k_of_the_whole_vocabulary_is_off() -> None:
    assert parse(Message(top_k=1000)).top_k == 0
    assert parse(Message(top_k=999)).top_k == 999


OUT_OF_RANGE = [
    ("temperature", [-0.001, 2.001], "[0, 2]"),
    ("top_p", [0.0, -0.5, 1.001], "(0, 1]"),
    ("min_p", [-0.001, 1.001], "[0, 1]"),
    ("typical_p", [0.0, 1.001], "(0, 1]"),
    ("frequency_penalty", [-2.001, 2.001], "[-2, 2]"),
    ("presence_penalty", [-2.001, 2.001], "[-2, 2]"),
    ("repetition_penalty", [0.0, -1.0, 2.001], "(0, 2]"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        (name, value, allowed)
        for name, values, allowed in OUT_OF_RANGE
        for value in [*values, math.nan, math.inf, -math.inf]
    ],
)
def test_refuses_numbers_out_of_range(name: str, value: float, allowed: str) -> None:
    message = Message()
    setattr(message, name, value)
    with pytest.raises(InvalidArgument) as refused:
        parse(message)
    assert refused.value.field == f"sampling.{name}"
    assert allowed in refused.value.message


@pytest.mark.parametrize(
    ("message", "field", "allowed"),
    [
        (Message(max_tokens=0), "max_tokens", "[1, 100]"),
        (Message(max_tokens=101), "max_tokens", "[1, 100]"),
        (Message(max_tokens=5, min_tokens=6), "min_tokens", "[0, 5]"),
        (Message(min_tokens=101), "min_tokens", "[0, 100]"),
        (Message(n=65), "n", "[1, 64]"),
        (Message(logprobs=21), "logprobs", "[0, 20]"),
        (Message(prompt_logprobs=21), "prompt_logprobs", "[0, 20]"),
        (Message(logit_bias={1000: 1.0}), "logit_bias", "[0, 999]"),
        (Message(logit_bias={5: 101.0}), "logit_bias[5]", "[-100, 100]"),
        (Message(logit_bias={5: math.nan}), "logit_bias[5]", "[-100, 100]"),
        (Message(logit_bias=dict.fromkeys(range(1025), 1.0)), "logit_bias", "at most 1024"),
        (Message(stop_token_ids=[1000]), "stop_token_ids", "[0, 999]"),
        (Message(stop_token_ids=range(257)), "stop_token_ids", "at most 256"),
    ],
)
def test_refuses_counts_and_lists_out_of_range(message: Message, field: str, allowed: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(message)
    assert refused.value.field == f"sampling.{field}"
    assert allowed in refused.value.message


def test_the_field_path_is_the_callers() -> None:
    with pytest.raises(InvalidArgument, match=r"^request\.sampling\.top_p: 2 is outside \(0, 1\]"):
        parse(Message(top_p=2), field="request.sampling")


def test_the_limits_themselves_are_allowed() -> None:
    message = Message(
        temperature=2, top_p=1, min_p=1, typical_p=1, frequency_penalty=2, presence_penalty=-2, repetition_penalty=2,
        logit_bias=dict.fromkeys(range(999), 0.0), stop_token_ids=range(256), max_tokens=100, min_tokens=100,
    )  # fmt: skip
    assert len(parse(message).logit_bias) == 999
