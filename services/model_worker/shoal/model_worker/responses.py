"""Engine output as messages of `shoal.api.worker.v1`."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.model_worker.messages import EngineInfo
from shoal.model_worker.request import FinishReason, Request
from shoal.model_worker.step import TokenLogprobs
from shoal.model_worker.streams import ChoiceOutput, RequestStream


class ResponseWriter:
    """Turns one stream's output into GenerateResponse messages, in order."""

    def __init__(self, stream: RequestStream) -> None:
        self._stream = stream
        self._first = True
        self._num_open = len(stream.choices)

    @property
    def complete(self) -> bool:
        """Whether every completion's last message was taken."""
        return self._num_open == 0

    @property
    def started(self) -> bool:
        """Whether any message was taken."""
        return not self._first

    def take(self) -> Iterator[worker_pb2.GenerateResponse]:
        """Messages for what has arrived since the last call, one a completion at most."""
        for output in self._stream.choices:
            if output.token_ids or (output.finish_reason is not None and not output.end_sent):
                yield self._message(output)

    def _message(self, output: ChoiceOutput) -> worker_pb2.GenerateResponse:
        stream = self._stream
        message = worker_pb2.GenerateResponse(
            choice=stream.request.first_choice + output.choice,
            first_token_index=output.next_index,
            token_ids=output.token_ids,
        )
        if output.logprobs:
            message.logprobs.extend(map(position_logprobs, output.logprobs))
            output.logprobs = []
        output.next_index += len(output.token_ids)
        output.token_ids = []
        output.sent_any = True
        if output.finish_reason is not None:
            message.finish_reason = generation_pb2.FinishReason.ValueType(output.finish_reason)
            if output.stop_token_id is not None:
                message.stop_token_id = output.stop_token_id
            output.end_sent = True
            self._num_open -= 1
        if self._first or self.complete:
            message.usage.prompt_tokens = stream.request.num_prompt_tokens
            message.usage.cached_tokens = stream.num_cached_tokens
            message.usage.completion_tokens = stream.num_completion_tokens
        if self._first and stream.prompt_logprobs is not None:
            message.prompt_logprobs.add()  # nothing predicts the first prompt token
            message.prompt_logprobs.extend(map(position_logprobs, stream.prompt_logprobs))
            stream.prompt_logprobs = None
        self._first = False
        return message


def ended_response(request: Request, reason: FinishReason) -> worker_pb2.GenerateResponse:
    """The only message of a resumed request that had ended already, but whose client never saw the end."""
    num_resumed = len(request.resume_token_ids)
    message = worker_pb2.GenerateResponse(
        choice=request.first_choice,
        first_token_index=num_resumed,
        finish_reason=generation_pb2.FinishReason.ValueType(reason),
    )
    if reason is FinishReason.STOP:
        message.stop_token_id = request.resume_token_ids[-1]
    message.usage.prompt_tokens = request.num_prompt_tokens
    message.usage.completion_tokens = num_resumed
    return message


def position_logprobs(entry: TokenLogprobs) -> generation_pb2.PositionLogprobs:
    """The log-probabilities at one position."""
    return generation_pb2.PositionLogprobs(
        token=generation_pb2.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, rank=entry.rank),
        top=[
            generation_pb2.TokenLogprob(token_id=token_id, logprob=logprob, rank=rank)
            for rank, (token_id, logprob) in enumerate(entry.top, 1)
        ],
    )


def info_response(
    model: str, info: EngineInfo, epoch: int, heartbeat_s: float, kv_store_problem: str = ""
) -> worker_pb2.GetInfoResponse:
    """What GetInfo answers."""
    return worker_pb2.GetInfoResponse(
        model=model,
        model_digest=info.model_digest,
        kv_layout=info.kv_layout,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        epoch=epoch,
        max_num_seqs=info.max_num_seqs,
        eos_token_ids=info.eos_token_ids,
        device=info.device,
        dtype=info.dtype,
        kv_heartbeat_ms=round(1000 * heartbeat_s),
        kv_store_problem=kv_store_problem,
    )
