"""What has arrived of an answer, as a gateway needs to know it to go on."""

from __future__ import annotations

from array import array

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.rpc.errors import Internal


class Delivered:
    """Fed every message of a stream, in order. 4 bytes a token."""

    def __init__(self, request: gateway_pb2.GenerateRequest) -> None:
        """`request`: as it was first sent; asks for token ids."""
        num_choices = max(1, request.sampling.n)
        self._request = request
        self.token_ids = [array("I") for _ in range(num_choices)]
        """Of each completion."""
        self._finished = [False] * num_choices
        self._first: gateway_pb2.GenerateResponse | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether the server said what it takes to ask for the rest: gateways that can resume tell the seed."""
        return self._first is not None and self._first.HasField("seed")

    @property
    def progress(self) -> tuple[int, int]:
        """Tokens and finished completions, over all completions."""
        return sum(map(len, self.token_ids)), sum(self._finished)

    def note(self, message: gateway_pb2.GenerateResponse) -> None:
        """Enters a message. Raises Internal when tokens are missing before it, or come again."""
        choice = message.choice
        if choice >= len(self.token_ids):
            raise Internal(f"the server sent choice {choice} of a request for {len(self.token_ids)}")
        token_ids = self.token_ids[choice]
        if message.token_ids and (message.first_token_index != len(token_ids) or self._finished[choice]):
            raise Internal(
                f"the server sent token {message.first_token_index} of choice {choice} "
                f"where token {len(token_ids)} was due"
            )
        if self._first is None:
            seed = message.seed if message.HasField("seed") else None
            self._first = gateway_pb2.GenerateResponse(request_id=message.request_id, model=message.model, seed=seed)
            self._first.usage.cached_tokens = message.usage.cached_tokens
        token_ids.extend(message.token_ids)
        if message.finish_reason != generation_pb2.FINISH_REASON_UNSPECIFIED:
            self._finished[choice] = True

    def rest(self) -> gateway_pb2.GenerateRequest:
        """The request for what is missing; as it was, as long as nothing came."""
        request = gateway_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        if (first := self._first) is not None:
            request.request_id, request.model = first.request_id, first.model
            request.sampling.seed = first.seed
            request.resume.cached_tokens = first.usage.cached_tokens
            for token_ids, finished in zip(self.token_ids, self._finished, strict=True):
                request.resume.completions.add(token_ids=token_ids, finished=finished)
        return request
