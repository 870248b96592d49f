"""Encodes and decodes without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tokenizers import Tokenizer

from shoal.rpc.errors import ResourceExhausted

INLINE_CHARS: Final = 1024
"""Texts up to this length are encoded where they arrive, in 0.2 ms at most. A thread adds 12 us, and far more when it
has to wait for the interpreter lock of a busy event loop."""
INLINE_IDS: Final = 1024
_T = TypeVar("_T")


class TokenizerThreads:
    """A tokenizer and the threads that run it; its batch calls release the interpreter lock."""

    def __init__(self, tokenizer: Tokenizer, num_threads: int, max_pending: int) -> None:
        self._tokenizer = tokenizer
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._max_pending = max_pending
        self._num_pending = 0

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Ids of each text. Special tokens written in a text become their ids. Raises ResourceExhausted when full."""

        def run() -> list[list[int]]:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

        if len(texts) == 1 and len(texts[0]) <= INLINE_CHARS:
            return [self._tokenizer.encode(texts[0], add_special_tokens=add_special_tokens).ids]
        return await self._run(run)

    async def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Text of each sequence. The ids are in the vocabulary. Raises ResourceExhausted when full."""

        def run() -> list[str]:
            return self._tokenizer.decode_batch(
                [list(ids) for ids in sequences], skip_special_tokens=skip_special_tokens
            )

        if sum(map(len, sequences)) <= INLINE_IDS:
            return run()
        return await self._run(run)

    def stop(self) -> None:
        """Ends the threads once what they do is done."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _run(self, call: Callable[[], _T]) -> _T:
        if self._num_pending >= self._max_pending:
            raise ResourceExhausted(f"{self._num_pending} calls are waiting for the tokenizer, the most allowed")
        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        finally:
            self._num_pending -= 1
