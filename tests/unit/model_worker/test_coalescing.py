from __future__ import annotations

import asyncio

from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.streams import ChoiceOutput, RequestStream
from support.engine_requests import make_request

MANY = 33


def make_output(*, sent_any: bool = True) -> ChoiceOutput:
    output = RequestStream.open(make_request(1, [1], sampling=SamplingParams())).choices[0]
    output.sent_any = sent_any
    return output


def awake(output: ChoiceOutput) -> bool:
    return output.stream._awake.is_set()


def add_token(coalescer: Coalescer, output: ChoiceOutput, num_streams: int) -> None:
    deliver = coalescer.for_streams(num_streams)
    output.token_ids.append(1)
    deliver(output)


async def test_few_streams_are_sent_each_token() -> None:
    coalescer = Coalescer(above_streams=32, max_tokens=4, max_delay_s=60)
    output = make_output()
    add_token(coalescer, output, num_streams=32)
    assert awake(output)


async def test_with_many_streams_tokens_wait_for_a_full_message() -> None:
    coalescer = Coalescer(above_streams=32, max_tokens=4, max_delay_s=60)
    output = make_output()
    for _ in range(3):
        add_token(coalescer, output, MANY)
        assert not awake(output)
    add_token(coalescer, output, MANY)
    assert awake(output)
    coalescer._timer.cancel()  # type: ignore[union-attr]  # the first token held started it


async def test_the_first_token_never_waits() -> None:
    coalescer = Coalescer(above_streams=32, max_tokens=4, max_delay_s=60)
    output = make_output(sent_any=False)
    add_token(coalescer, output, MANY)
    assert awake(output)


async def test_no_token_waits_longer_than_the_delay() -> None:
    coalescer = Coalescer(above_streams=32, max_tokens=100, max_delay_s=0.02)
    outputs = [make_output() for _ in range(3)]
    for output in outputs:
        add_token(coalescer, output, MANY)
    assert not any(awake(output) for output in outputs)
    async with asyncio.timeout(5):
        for output in outputs:
            await output.stream.wait()


async def test_what_was_sent_meanwhile_is_not_woken_for_again() -> None:
    coalescer = Coalescer(above_streams=32, max_tokens=100, max_delay_s=0.01)
    sent, waiting = make_output(), make_output()
    for output in (sent, waiting):
        add_token(coalescer, output, MANY)
    sent.token_ids.clear()
    async with asyncio.timeout(5):
        await waiting.stream.wait()
    assert not awake(sent)
