"""What a stream has delivered so far: all that another worker needs to go on with it."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.rpc.errors import Internal

Message = gateway_pb2.GenerateResponse


class Completion:
    """One of a request's n completions, as far as its messages have come. 4 bytes a token."""

    __slots__ = ("abandoned", "finished", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("I")
        self.finished = False
        """Its last message came."""
        self.abandoned = False
        """Nobody wants the rest: a stop string ended it. The worker may still send tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens received."""
        return len(self.token_ids)

    @property
    def over(self) -> bool:
        """Whether nothing is missing."""
        return self.finished or self.abandoned


class Journal:
    """All completions of one request. Bounded by their max_tokens."""

    __slots__ = ("begun", "completions", "num_restored_tokens", "num_tokens")

    def __init__(self, num_completions: int) -> None:
        self.completions: Sequence[Completion] = [Completion() for _ in range(num_completions)]
        self.num_tokens = 0
        """Over all completions."""
        self.num_restored_tokens = 0
        """Of these, those that a client brought along."""
        self.begun = False
        """Whether any message came. From then on prompt and cached tokens are told, and nothing may be sent twice."""

    @property
    def finished(self) -> bool:
        """Whether every completion's last message came."""
        return all(completion.finished for completion in self.completions)

    def restore(self, resume: gateway_pb2.Resume) -> None:
        """Enters what a client has of an answer whose gateway it lost. Call at most once, first."""
        for completion, had in zip(self.completions, resume.completions, strict=True):
            completion.token_ids.extend(had.token_ids)
            completion.finished = had.finished
            self.num_tokens += completion.num_tokens
        self.num_restored_tokens = self.num_tokens
        self.begun = True

    def note(self, message: Message, choices: Collection[int]) -> None:
        """Enters a message from a worker that was asked for `choices`.

        Raises Internal, and enters nothing, when it is not the next one of its completion: a gap or a repetition.
        """
        index, token_ids = message.choice, message.token_ids
        if index not in choices:
            raise Internal(f"the worker answered for completion {index}, not one of {sorted(choices)}")
        completion = self.completions[index]
        if token_ids:
            if message.first_token_index != completion.num_tokens or completion.finished:
                raise Internal(
                    f"the worker sent token {message.first_token_index} of completion {index} where token "
                    f"{completion.num_tokens} was due"
                )
            completion.token_ids.extend(token_ids)
            self.num_tokens += len(token_ids)
        self.begun = True
        if message.finish_reason != generation_pb2.FINISH_REASON_UNSPECIFIED:
            completion.finished = True
