"""A text goes on where the client has it, whichever gateway wrote its beginning and however the tokens were cut."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.generation import Generation
from shoal.gateway.journal import Message
from shoal.gateway.relay import TextRelay
from shoal.gateway.text.vocabulary import Vocabulary
from shoal.rpc.errors import InvalidArgument

BOTH = gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS
LENGTH = generation_pb2.FINISH_REASON_LENGTH
PIECES = [b"a", b"b", b" a", b"ab", b"ba b", "€".encode(), b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"<end>", b""]
VOCABULARY = Vocabulary(PIECES, frozenset({10}), strips_leading_space=True)
ids_lists = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=24)
cuts = st.lists(st.integers(1, 24), max_size=6)


@dataclass
class FakeGeneration:
    """What TextRelay uses of a Generation: messages that came from workers."""

    messages: deque[Message]
    num_completions: int
    abandoned: set[int] = field(default_factory=set)
    num_prompt_tokens: int = 3
    num_cached_tokens: int = 2
    worker: str = "w"
    seed: int = 5
    admitted: Any = None

    @property
    def completions(self) -> range:
        return range(self.num_completions)

    async def read(self) -> Message | None:
        return self.messages.popleft() if self.messages else None

    def abandon(self, choice: int) -> None:
        self.abandoned.add(choice)

    def cancel(self) -> None:
        self.messages.clear()


@dataclass(frozen=True)
class Named:
    name: str


@dataclass(frozen=True)
class AdmittedRequest:
    request_id: str = "r"
    model: Named = Named("m")


def messages_of(ids: Sequence[Sequence[int]], starts: Sequence[int], cut: Sequence[int]) -> deque[Message]:
    """The rest of each completion from `starts` on, cut at `cut`, taking turns; all end by length."""
    lanes: list[list[Message]] = []
    for choice, (mine, start) in enumerate(zip(ids, starts, strict=True)):
        if start < 0:
            continue
        places = sorted({start, len(mine), *(c for c in cut if start < c < len(mine))})
        lane = [
            Message(choice=choice, first_token_index=a, token_ids=mine[a:b]) for a, b in itertools.pairwise(places)
        ] or [Message(choice=choice, first_token_index=start)]
        lane[-1].finish_reason = LENGTH
        lanes.append(lane)
    return deque(m for turn in itertools.zip_longest(*lanes) for m in turn if m is not None)


def relay_for(request: gateway_pb2.GenerateRequest, messages: deque[Message]) -> TextRelay:
    generation = FakeGeneration(messages, request.sampling.n, admitted=AdmittedRequest())
    return TextRelay(cast(Generation, generation), request, VOCABULARY)


async def read_all(relay: TextRelay) -> list[Message]:
    messages = []
    while (message := await relay.read()) is not None:
        messages.append(message)
    return messages


def joined(messages: Sequence[Message], num_completions: int) -> list[tuple[str, list[int], int, str]]:
    """Text, ids, finish reason and stop text of each completion."""
    result = []
    for choice in range(num_completions):
        mine = [m for m in messages if m.choice == choice]
        ids = [i for m in mine for i in m.token_ids]
        text, stop_text = "".join(m.text for m in mine), "".join(m.stop_text for m in mine)
        result.append((text, ids, max((m.finish_reason for m in mine), default=0), stop_text))
    return result


@given(
    ids=st.lists(ids_lists, min_size=1, max_size=3),
    stops=st.lists(st.text("ab €", min_size=1, max_size=3), max_size=3),
    flags=st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)),
    first_cut=cuts,
    second_cut=cuts,
    where=st.integers(0, 30),
)
def test_beginning_and_rest_make_the_whole(
    ids: list[list[int]],
    stops: list[str],
    flags: tuple[bool, bool, int],
    first_cut: list[int],
    second_cut: list[int],
    where: int,
) -> None:
    keeps_special, keeps_stop, min_tokens = flags
    num = len(ids)
    request = gateway_pb2.GenerateRequest(
        stop=stops, include_stop_text=keeps_stop, include_special_tokens=keeps_special, output_format=BOTH
    )
    request.sampling.n, request.sampling.min_tokens = num, min_tokens
    whole = asyncio.run(read_all(relay_for(request, messages_of(ids, [0] * num, first_cut))))
    before = whole[: where % len(whole)]
    resume = gateway_pb2.Resume()
    for _, delivered, finish_reason, _ in joined(before, num):
        resume.completions.add(token_ids=delivered, finished=bool(finish_reason))
    if all(had.finished for had in resume.completions):
        return
    starts = [-1 if had.finished else len(had.token_ids) for had in resume.completions]

    async def go_on() -> list[Message]:
        relay = relay_for(request, messages_of(ids, starts, second_cut))
        await relay.replay(resume)
        return await read_all(relay)

    rest = asyncio.run(go_on())
    assert joined([*before, *rest], num) == joined(whole, num)
    if whole[-1].HasField("usage"):  # a stop text ended one: the relay counts
        stopped_before = any(m.stop_text for m in before)
        assert rest[-1].HasField("usage") or stopped_before
        if rest[-1].HasField("usage"):
            assert rest[-1].usage == whole[-1].usage


@pytest.mark.parametrize(("ids", "problem"), [([0, 1, 0], "ended it with token 1"), ([99], "99 is outside")])
def test_ids_that_were_no_unfinished_answer_are_refused(ids: list[int], problem: str) -> None:
    request = gateway_pb2.GenerateRequest(stop=["ab"], output_format=BOTH)
    request.sampling.n = 1
    relay = relay_for(request, deque())
    with pytest.raises(InvalidArgument, match=problem) as caught:
        asyncio.run(relay.replay(gateway_pb2.Resume(completions=[gateway_pb2.ResumedCompletion(token_ids=ids)])))
    assert caught.value.field == "resume.completions[0].token_ids"
