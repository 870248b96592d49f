"""API keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shoal.config import ConfigError
from shoal.gateway.tenants import ANONYMOUS, load_authenticator
from shoal.rpc.errors import Unauthenticated


def line(tenant: str, key: str) -> str:
    return f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"


def test_without_a_file_everybody_is_one_tenant() -> None:
    assert load_authenticator("").authenticate(None) is ANONYMOUS


def test_a_key_is_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{line('a', 'key-a')}\n\n{line('b', 'key-b')}\n{line('a', 'key-a2')}\n")
    keys = load_authenticator(str(path))
    assert keys.authenticate("Bearer key-b").name == "b"
    first, second = keys.authenticate("bearer key-a"), keys.authenticate("Bearer key-a2")
    assert first == second
    assert first.cache_salt == hashlib.sha256(b"tenant:a").digest()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic key-a", "key-a", "Bearer key-c", "Bearer ü"])
def test_anything_else_is_refused_without_repeating_it(tmp_path: Path, header: str | None) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "key-a"))
    with pytest.raises(Unauthenticated) as caught:
        load_authenticator(str(path)).authenticate(header)
    assert "key-c" not in caught.value.message


@pytest.mark.parametrize("text", ["a:secret", "secret", f"{'A' * 64}", "", "# nothing"])
def test_a_bad_file_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_authenticator(str(path))
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_authenticator(str(tmp_path / "absent"))
