"""Workers prove their tenants to a store that asks for that, and tenants stay apart."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from shoal.blocks import tenant_salt
from shoal.kv_client import KvClientOptions
from shoal.kv_store.tenants import Tenant, Tenants
from shoal.model_worker.request import Request
from shoal.model_worker.tenants import Accounts, TokensProblem, operator_token, tenant_of
from support.engine_requests import exactly, make_request
from support.kv_store_running import RunningStore, running_store
from support.offload_harness import offloading

PROMPT = list(range(42))
NUM_FULL = 40
SECRETS = {"acme": "the secret of acme", "zeta": "the secret of zeta", "default": "the secret of all others"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    known = {name: Tenant(sha256(secret.encode()).hexdigest()) for name, secret in SECRETS.items()}
    with running_store(tmp_path, tenants=Tenants(known)) as running:
        yield running


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text("".join(f'{name} = "{secret}"\n' for name, secret in SECRETS.items()))
    return path


def request(stream_id: int, tenant: str) -> Request:
    salt = tenant_salt(tenant) if tenant else b""
    made = make_request(stream_id, PROMPT, sampling=exactly(2), tenant=salt)
    fields = {name: getattr(made, name) for name in Request.__dataclass_fields__}
    return Request(**fields | {"tenant": tenant_of(salt)})


def test_tenants_use_the_store_under_their_own_names_and_stay_apart(store: RunningStore, tokens: Path) -> None:
    accounts = Accounts(str(tokens))
    with offloading(store, accounts=accounts) as first, offloading(store, accounts=accounts) as second:
        for number, tenant in enumerate(("acme", ""), 1):
            assert first.run(request(number, tenant)) == 0
            first.flush()
        assert second.run(request(1, "zeta")) == 0
        assert second.run(request(2, "acme")) == NUM_FULL
        assert second.run(request(3, "")) == NUM_FULL
        names = {scope.tenant for scope in store.do(lambda running: running.scopes.of_tenant(""))}
        assert names == {"acme", "default", "zeta"}
        assert first.offload.stats.problem == second.offload.stats.problem == ""


def test_who_has_no_token_computes_and_leaves_the_store_alone(store: RunningStore, tokens: Path) -> None:
    with offloading(store, accounts=Accounts(str(tokens))) as h:
        h.run(request(1, "stranger"))
        h.flush()
        assert h.offload.stats.unused == {"no_account": 1}
        assert store.do(lambda running: (len(running.index), len(running.sessions))) == (0, 0)


def test_a_wrong_token_is_a_problem_that_is_told_without_it(store: RunningStore, tokens: Path) -> None:
    tokens.write_text('acme = "something else"\n')
    with offloading(store, accounts=Accounts(str(tokens))) as h:
        assert h.run(request(1, "acme")) == 0
        h.flush()
        assert "token" in h.offload.stats.problem
        assert "something else" not in repr(h.offload.stats)
        assert store.do(lambda running: len(running.index)) == 0


def test_tokens_that_change_are_read_again(store: RunningStore, tokens: Path) -> None:
    now_s = 0.0
    tokens.write_text('zeta = "the secret of zeta"\n')
    accounts = Accounts(str(tokens), clock=lambda: now_s)
    with offloading(store, accounts=accounts) as h:
        h.run(request(1, "acme"))
        fresh = tokens.with_name("fresh")
        fresh.write_text('acme = "the secret of acme"\n')
        fresh.rename(tokens)
        h.run(request(2, "acme"))
        assert h.offload.stats.unused == {"no_account": 2}
        now_s = 10.0
        h.cache.clear()
        h.run(request(3, "acme"))
        h.flush()
        assert h.offload.stats.stored_blocks > 0
        tokens.write_text("acme = 5\n")
        now_s = 20.0
        h.run(request(4, "acme"))
        assert h.offload.stats.unused.get("no_account") == 2, "what was known before stays"


@pytest.mark.parametrize(
    ("text", "problem"),
    [("acme", "not TOML"), ("acme = 7", "entry 1"), ('a = "x"\nb.c = "hush"', "entry 2"), ('a = " "', "entry 1")],
)
def test_a_file_that_cannot_be_used_is_told_without_what_is_in_it(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(TokensProblem, match=problem) as raised:
        Accounts(str(path))
    assert "hush" not in str(raised.value)
    with pytest.raises(TokensProblem, match="cannot be read"):
        Accounts(str(tmp_path / "none"))


def test_the_operators_token_is_for_events_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text('"*" = "all"\nacme = "own"\n')
    assert operator_token(str(path)) == "all"
    assert operator_token("") == ""
    assert operator_token(str(tmp_path / "none")) == ""
    assert Accounts(str(path)).find(tenant_of(tenant_salt("*"))) is None


def test_tokens_are_not_shown() -> None:
    options = KvClientOptions(socket_path="", tenant="a", fingerprint=b"f", block_bytes=1, token="hush")
    assert "hush" not in repr(options)
