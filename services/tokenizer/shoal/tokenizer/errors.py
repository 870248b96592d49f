"""What makes a tokenizer impossible to serve; found at start, never during a call."""

from __future__ import annotations


class TokenizerError(Exception):
    """The model's tokenizer files are missing, damaged or of a kind that is not supported; the message says which."""
