"""A chat template given as a file replaces the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.service import read_template


def test_template_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}é\n")
    assert read_template(path, 100) == "{{ messages }}é\n"


def test_bad_templates_are_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    with pytest.raises(TokenizerError, match=r"chat_template .*chat\.jinja: .*No such file"):
        read_template(path, 100)
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="can't decode"):
        read_template(path, 100)
    path.write_text("x" * 101)
    with pytest.raises(TokenizerError, match="more than max_template_bytes = 100"):
        read_template(path, 100)
