"""A loaded tokenizer and everything the service says about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from tokenizers import Tokenizer

DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"
"""Name of the template that is used when a conversation has tools, in models that have several."""


@dataclass(frozen=True, slots=True)
class TokenizerDefinition:
    """What a model's files say. Made by `loading.load_definition`."""

    tokenizer: Tokenizer
    """Adds special tokens only when asked; never pads or truncates."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Ids that end a completion, ascending."""
    chat_templates: Mapping[str, str]
    """Jinja sources by name; empty when the model has none."""
    named_tokens: Mapping[str, str]
    """Text of `bos_token`, `eos_token` and so on, as templates see them."""

    def compute_digest(self) -> str:
        """sha256 over everything that changes an answer, hex. 40 ms for 49k tokens: compute it once."""
        rest = [self.bos_token_id, self.eos_token_ids, dict(self.chat_templates), dict(self.named_tokens)]
        digest = hashlib.sha256(b"shoal.tokenizer.v1\0")
        digest.update(self.tokenizer.to_str().encode())
        digest.update(msgspec.json.encode(rest, order="sorted"))
        return digest.hexdigest()

    def template_for(self, has_tools: bool) -> str | None:
        """The name of the template to use for a conversation, or None when the model has none."""
        if has_tools and TOOL_TEMPLATE in self.chat_templates:
            return TOOL_TEMPLATE
        if DEFAULT_TEMPLATE in self.chat_templates:
            return DEFAULT_TEMPLATE
        return next(iter(self.chat_templates), None)
