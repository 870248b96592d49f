"""The bytes each token stands for, as the tokenizer service hands them out at start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.api.tokenizer.v1 import tokenizer_pb2

_JOINS = {
    tokenizer_pb2.PIECE_JOIN_CONCATENATE: False,
    tokenizer_pb2.PIECE_JOIN_CONCATENATE_STRIP_LEADING_SPACE: True,
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Immutable; shared by every request. `pieces[id]` is empty for ids without text."""

    pieces: Sequence[bytes]
    special_ids: frozenset[int]
    strips_leading_space: bool = False
    digest: str = ""

    _visible: Sequence[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_visible", [b"" if i in self.special_ids else p for i, p in enumerate(self.pieces)])

    def __len__(self) -> int:
        return len(self.pieces)

    def pieces_of(self, *, include_special_tokens: bool) -> Sequence[bytes]:
        """What each id adds to a text: special tokens add nothing unless asked for."""
        return self.pieces if include_special_tokens else self._visible


def vocabulary_of(messages: Iterable[tokenizer_pb2.GetVocabularyResponse]) -> Vocabulary:
    """Joins the messages of one GetVocabulary call. Raises ValueError when they leave gaps or contradict each other."""
    pieces: list[bytes] = []
    special: set[int] = set()
    join, digest = None, ""
    for message in messages:
        if message.first_id != len(pieces):
            raise ValueError(f"vocabulary has a gap: expected id {len(pieces)}, got {message.first_id}")
        if join is not None and (join, digest) != (message.join, message.digest):
            raise ValueError("vocabulary messages come from different tokenizers")
        join, digest = message.join, message.digest
        pieces.extend(message.pieces)
        special.update(message.special_ids)
    if join not in _JOINS:
        raise ValueError(f"the tokenizer joins pieces in a way this gateway does not know: {join}")
    return Vocabulary(pieces, frozenset(special), _JOINS[join], digest)
