"""Pure state of one request and of its completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from shoal.model_worker.block_source import Retrieval
from shoal.model_worker.kv_cache import BlockTable
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.step import IntArray


class FinishReason(IntEnum):
    """Why a completion ended; the numbers of `shoal.api.generation.v1.FinishReason`."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, validated. Built by the front, read by the scheduler."""

    stream_id: int
    """Stream of choice 0; choice c has stream_id + c. Unique in this process's life."""
    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    """Resolved 64-bit seed."""
    namespace_key: bytes
    """Parent of the first block's key: separates models, layouts, adapters and tenants."""
    arrival_s: float
    """time.monotonic() when the front got it (one clock for all processes of a host)."""
    resume_token_ids: tuple[int, ...] = ()
    """Output that an earlier attempt delivered. Only with n = 1."""
    first_choice: int = 0
    """Number of the first completion among those of the client's request. Not 0 only with n = 1."""
    priority: int = 0
    deadline_s: float | None = None
    """time.monotonic() at which the client gives up."""
    tenant: str = "default"
    """Whose blocks these are, to a KV store. As many tenants as there are cache salts."""
    traceparent: str = ""
    """W3C trace context of the call's span; empty where nobody traces."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def max_len(self) -> int:
        """Prompt plus output at which a completion ends."""
        return self.num_prompt_tokens + self.sampling.max_tokens

    def finish_reason(
        self, num_output_tokens: int, last_token_id: int, eos_token_ids: frozenset[int]
    ) -> FinishReason | None:
        """Whether a completion that so far has these tokens has ended. A stop token wins over the length."""
        sampling = self.sampling
        if num_output_tokens > sampling.min_tokens and (
            last_token_id in sampling.stop_token_ids or (not sampling.ignore_eos and last_token_id in eos_token_ids)
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if num_output_tokens >= sampling.max_tokens else None


@dataclass(slots=True, eq=False)
class RequestGroup:
    """A request and what its completions have in common."""

    request: Request
    sequences: list[Sequence] = field(default_factory=list)
    """Unfinished ones. Before the fork only choice 0 is here, and stands for all of them."""
    forked: bool = False
    """Whether all n completions have a life of their own."""
    started: bool = False
    """Whether it was ever admitted to a slot."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion: the unit that is scheduled, preempted and finished. Changed by the scheduler only."""

    group: RequestGroup
    choice: int
    """Among the completions of this request, from 0."""
    order: tuple[float, int]
    """The policy's sort key and a tie-breaker; smaller runs first."""
    token_ids: IntArray
    """Prompt and output so far while it waits; stale while it holds a slot (the slot table has them). Never changed in
    place."""
    block_keys: list[bytes]
    """Keys of the full blocks of `token_ids`."""
    slot: int = -1
    """-1 while it waits."""
    reserved_slots: list[int] = field(default_factory=list)
    """Slots kept for the other choices until the fork."""
    table: BlockTable | None = None
    """None while it waits."""
    prompt_logprobs_sent: bool = False
    retrieval: Retrieval | None = None
    """What a KV store has of it, while it waits or is filled from there."""
    is_loading: bool = False
    """Whether it holds a slot and blocks that are being filled, and the runner does not know of it yet."""

    @property
    def request(self) -> Request:
        """The request it belongs to."""
        return self.group.request

    @property
    def stream_id(self) -> int:
        """Names the completion to the front."""
        return self.group.request.stream_id + self.choice

    @property
    def num_slots_needed(self) -> int:
        """Slots that admission must find: one a choice before the fork, then one."""
        return 1 if self.group.forked else self.group.request.sampling.n
