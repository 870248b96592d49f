"""Calls and answers that only a peer can have made, once and lately."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.kv_store.remote import auth
from shoal.kv_store.remote.auth import MAX_SKEW_S, NotAuthentic, Signer, read_secret
from shoal.rpc.errors import Unauthenticated

METHOD, BODY = "/a/B", b"body"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(b"a secret of theirs", clock)


def test_a_signed_call_and_its_answer_are_believed(signer: Signer) -> None:
    call = signer.sign_call(METHOD, BODY)
    nonce = signer.verify_call(METHOD, BODY, call)
    signer.verify_answer(METHOD, b"answer", call, signer.sign_answer(METHOD, b"answer", nonce))


def test_a_call_is_good_once(signer: Signer) -> None:
    call = signer.sign_call(METHOD, BODY)
    signer.verify_call(METHOD, BODY, call)
    with pytest.raises(Unauthenticated, match="before"):
        signer.verify_call(METHOD, BODY, call)


@pytest.mark.parametrize("age_s", [MAX_SKEW_S + 1, -MAX_SKEW_S - 1])
def test_a_call_of_another_time_is_refused(signer: Signer, clock: Clock, age_s: float) -> None:
    call = signer.sign_call(METHOD, BODY)
    clock.now_s += age_s
    with pytest.raises(Unauthenticated, match="clocks"):
        signer.verify_call(METHOD, BODY, call)


def test_a_replayed_call_is_refused_as_long_as_it_is_of_its_time(signer: Signer, clock: Clock) -> None:
    call = signer.sign_call(METHOD, BODY)
    signer.verify_call(METHOD, BODY, call)
    for _ in range(10):
        clock.now_s += MAX_SKEW_S / 8
        signer.verify_call(METHOD, BODY, signer.sign_call(METHOD, BODY))
        with pytest.raises(Unauthenticated):
            signer.verify_call(METHOD, BODY, call)


def test_so_many_calls_are_remembered_and_no_more(
    signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_NONCES", 3)
    for _ in range(3):
        signer.verify_call(METHOD, BODY, signer.sign_call(METHOD, BODY))
    with pytest.raises(Unauthenticated):
        signer.verify_call(METHOD, BODY, signer.sign_call(METHOD, BODY))
    clock.now_s += 3 * MAX_SKEW_S
    signer.verify_call(METHOD, BODY, signer.sign_call(METHOD, BODY))


@pytest.mark.parametrize(("method", "body"), [("/a/C", BODY), (METHOD, b"other")])
def test_a_signature_is_for_one_method_and_body(signer: Signer, method: str, body: bytes) -> None:
    with pytest.raises(Unauthenticated, match="signed"):
        signer.verify_call(method, body, signer.sign_call(METHOD, BODY))


def test_without_the_secret_nothing_is_believed(signer: Signer, clock: Clock) -> None:
    stranger = Signer(b"some other secret", clock)
    with pytest.raises(Unauthenticated):
        signer.verify_call(METHOD, BODY, stranger.sign_call(METHOD, BODY))
    with pytest.raises(Unauthenticated):
        signer.verify_call(METHOD, BODY, ())
    call = signer.sign_call(METHOD, BODY)
    nonce = dict(call)[auth.NONCE]
    for trailers in (None, (), stranger.sign_answer(METHOD, b"x", nonce), signer.sign_answer(METHOD, b"y", nonce)):
        with pytest.raises(NotAuthentic):
            signer.verify_answer(METHOD, b"x", call, trailers)


def test_an_answer_is_for_one_call(signer: Signer) -> None:
    one, other = signer.sign_call(METHOD, BODY), signer.sign_call(METHOD, BODY)
    with pytest.raises(NotAuthentic):
        signer.verify_answer(METHOD, b"x", one, signer.sign_answer(METHOD, b"x", dict(other)[auth.NONCE]))
    with pytest.raises(NotAuthentic, match="answer"):
        signer.verify_answer(METHOD, BODY, one, one)


def test_with_certificates_nothing_is_signed() -> None:
    signer = Signer(None)
    assert signer.sign_call(METHOD, BODY) == ()
    assert signer.verify_call(METHOD, BODY, ()) == ""
    signer.verify_answer(METHOD, BODY, (), None)


@pytest.mark.parametrize("content", [b"", b"short", b"  \n 15 bytes, not 16"[:18], b"x" * 5000])
def test_secrets_have_a_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ValueError, match="give 16 to 4096"):
        read_secret(str(tmp_path / "secret"))


def test_white_space_around_a_secret_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b" 0123456789abcdef\n")
    assert read_secret(str(tmp_path / "secret")) == b"0123456789abcdef"
