"""Who may ask a store for what, and how much room they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.worker.v1 import worker_pb2
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.process import SettingsProblem, build_store
from shoal.kv_store.tenants import OPERATOR, Caller, Tenant, Tenants, TenantsProblem, read_tenants
from shoal.rpc.errors import PermissionDenied, Unauthenticated
from support.disk_faults import FaultyFiles
from support.kv_store_core import BLOCK_BYTES, Core, open_core
from support.kv_store_running import key

DIGESTS = {name: sha256(name.encode()).hexdigest() for name in ("a", "b", "o")}
TENANTS = Tenants({"a": Tenant(DIGESTS["a"]), "b": Tenant(DIGESTS["b"]), OPERATOR: Tenant(DIGESTS["o"])})


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    async with asyncio.timeout(20), open_core(tenants=TENANTS) as core:
        yield core


def test_a_token_is_good_for_its_tenant_alone() -> None:
    assert TENANTS.identify("a") == Caller("a")
    assert TENANTS.identify("o") == Caller("")
    TENANTS.check("a", "a")
    for tenant, token in (("a", "b"), ("a", ""), ("a", "o"), ("c", "a"), (OPERATOR, "o")):
        with pytest.raises(PermissionDenied, match="token"):
            TENANTS.check(tenant, token)
    for nobody in (None, "", "x"):
        with pytest.raises(Unauthenticated, match="token"):
            TENANTS.identify(nobody)
    assert Tenants().identify(None) == Caller("")
    Tenants().check("anybody", "")


async def test_a_tenant_sees_its_own_blocks_only(core: Core) -> None:
    await core.put(1, 2)
    control = core.control
    mine, others = Caller("a"), Caller("b")
    assert control.stats(pb.StatsRequest(), mine).num_blocks == 2
    assert control.stats(pb.StatsRequest(), others).num_blocks == 0
    assert not control.stats(pb.StatsRequest(), mine).counters
    assert control.stats(pb.StatsRequest(), Caller("")).counters["stored"] == 2
    assert [len(part.blocks) async for part in control.list_blocks(pb.ListRequest(), mine)] == [2]
    assert [part async for part in control.list_blocks(pb.ListRequest(), others)] == []
    assert [last async for last in control.verify(pb.VerifyRequest(), others)][-1].num_blocks == 0
    scope = pb.Scope(tenant="a", fingerprint=b"f")
    assert control.lookup(pb.LookupRequest(scope=scope, keys=key(1)), caller=mine).num_visible == 1
    forbidden: list[Callable[[], object]] = [
        lambda: control.stats(pb.StatsRequest(tenant="a"), others),
        lambda: control.watch(pb.WatchRequest(tenant="a"), others),
        lambda: control.list_blocks(pb.ListRequest(tenant="a"), others),
        lambda: control.verify(pb.VerifyRequest(tenant="a"), others),
        lambda: control.lookup(pb.LookupRequest(scope=scope, keys=key(1)), caller=others),
        lambda: control.evict(pb.EvictRequest(scope=scope, keys=key(1)), caller=others),
        lambda: control.pin(pb.PinRequest(scope=scope, keys=key(1), owner="x", ttl_ms=1), others),
        lambda: control.unpin(pb.UnpinRequest(scope=scope, keys=key(1), owner="x"), others),
        lambda: control.lookup(pb.LookupRequest(scope=scope, keys=key(1))),
    ]
    for call in forbidden:
        with pytest.raises(PermissionDenied):
            call()
    with pytest.raises(PermissionDenied, match="operator"):
        _ = [last async for last in control.drain(pb.DrainRequest(), mine)]
    assert core.stats.counters["foreign_tenant"] == 5


async def test_a_watcher_of_one_tenant_hears_nothing_of_others(core: Core) -> None:
    await core.put(1)
    store = core.store
    store.open_session("b", b"f", BLOCK_BYTES, 1)
    mine = core.control.watch(pb.WatchRequest(), Caller("a"))
    others = core.control.watch(pb.WatchRequest(), Caller("b"))
    everything = core.control.watch(pb.WatchRequest(tenant="a"), Caller(""))

    async def next_of(watch: AsyncIterator[pb.WatchResponse], num: int) -> list[pb.WatchResponse]:
        return [await anext(watch) for _ in range(num)]

    for watch, keys in ((mine, [key(1)]), (others, []), (everything, [key(1)])):
        memory, disk = await next_of(watch, 2)
        assert (memory.snapshot.tier, list(memory.snapshot.keys)) == (worker_pb2.TIER_MEMORY, keys)
        assert disk.snapshot.complete
    await core.put(2, parent=key(1))
    for watch in (mine, everything):
        assert (await anext(watch)).stored.keys == [key(2)]
    heartbeat = await anext(others)
    assert heartbeat.WhichOneof("event") is None
    assert heartbeat.seq == store.events.last_seq


async def test_each_tenant_keeps_to_its_own_quotas(tmp_path: Path) -> None:
    known = {"a": Tenant(DIGESTS["a"], memory_bytes=3 * BLOCK_BYTES, disk_bytes=4 * BLOCK_BYTES)}
    tenants = Tenants(known, memory_bytes=1 << 40)
    async with asyncio.timeout(20), open_core(tenants=tenants, files=FaultyFiles(), folder=tmp_path) as core:
        for number in range(1, 9):
            await core.put(number)
            await core.settle()
        stats = core.control.stats(pb.StatsRequest(tenant="a"), Caller(""))
        assert (stats.used_memory_bytes, stats.memory_bytes) == (3 * BLOCK_BYTES, 3 * BLOCK_BYTES)
        assert (stats.used_disk_bytes, stats.disk_bytes) == (4 * BLOCK_BYTES, 4 * BLOCK_BYTES)
        assert core.stats.counters["refused_disk_quota"] == 4
        assert core.store.tenants.memory_quota("b") == 1 << 40


async def test_a_quota_holds_across_a_tenants_block_sizes() -> None:
    tenants = Tenants(memory_bytes=4 * BLOCK_BYTES)
    async with asyncio.timeout(20), open_core(tenants=tenants) as core:
        await core.put(1, 2, 3, 4)
        small = core.store.open_session("a", b"g", BLOCK_BYTES // 2, 3)
        for number in range(10, 13):
            request = pb.ReserveRequest(keys=key(number), parent_key=b"n" * 16, namespace_key=b"n" * 16)
            assert core.control.reserve(request, small).statuses == [pb.BLOCK_STATUS_RESERVED]
        assert core.store.arena.used_bytes("a") <= 4 * BLOCK_BYTES
        assert core.stats.counters["evicted"] == 2


def test_a_tenants_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(
        f'[a]\ntoken_sha256 = "{DIGESTS["a"].upper()}"\nmemory_bytes = 5\n["*"]\ntoken_sha256 = "{DIGESTS["o"]}"'
    )
    tenants = read_tenants(str(path), 10, 20)
    assert tenants.identify("a") == Caller("a")
    assert tenants.identify("o") == Caller("")
    assert (tenants.memory_quota("a"), tenants.disk_quota("a"), tenants.memory_quota("b")) == (5, 20, 10)
    wrong = {
        'a = "x"': "nothing else",
        "[a]\nname = 1": "nothing else",
        '[a]\ntoken_sha256 = "abc"': "64 hexadecimal digits",
        f'[a]\ntoken_sha256 = "{DIGESTS["a"]}"\ndisk_bytes = -1': "0 or more",
        f'[a]\ntoken_sha256 = "{DIGESTS["a"]}"\n[b]\ntoken_sha256 = "{DIGESTS["a"]}"': "the same token",
        "[a": "tenants_file",
    }
    for text, problem in wrong.items():
        path.write_text(text)
        with pytest.raises(TenantsProblem, match=problem):
            read_tenants(str(path), 10, 20)
    with pytest.raises(TenantsProblem, match="No such file"):
        read_tenants(str(tmp_path / "none"), 10, 20)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "kv.example.org", ""])
def test_tokens_do_not_travel_in_the_clear(tmp_path: Path, host: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("")
    config = KvStoreConfig(socket_path="kv.sock", host=host, tenants_file=str(path))
    with pytest.raises(SettingsProblem, match="carry tokens, and the port has no TLS"):
        build_store(config)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_on_the_own_host_tokens_may_be_sent_as_they_are(tmp_path: Path, host: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("")
    sizes = {"memory_bytes": 1 << 20, "chunk_bytes": 1 << 18, "huge_pages": "off"}
    config = KvStoreConfig(socket_path="kv.sock", host=host, tenants_file=str(path), **sizes)  # type: ignore[arg-type]
    build_store(config).close()
