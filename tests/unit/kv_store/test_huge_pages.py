"""Huge pages: those who ask for reserved ones get them or hear why not; others are told what they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.arena import Arena, HugePagesMissing, arena, grant_huge_pages, huge_pages
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.process import SettingsProblem, build_store
from shoal.kv_store.reporting import make_stats
from shoal.kv_store.tenants import Caller

PAGE = 2 << 20


def kernel(folder: Path, *, free: int = 0, reserved: int = 0, overcommit: int = 0, shmem: str = "never") -> Path:
    pool = folder / "hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    numbers = {
        "free_hugepages": free,
        "resv_hugepages": reserved,
        "nr_overcommit_hugepages": overcommit,
        "surplus_hugepages": 0,
    }
    for name, number in numbers.items():
        (pool / name).write_text(f"{number}\n")
    (folder / "transparent_hugepage").mkdir()
    text = "always within_size advise never deny force".replace(shmem, f"[{shmem}]")
    (folder / "transparent_hugepage/shmem_enabled").write_text(text)
    return folder


@pytest.mark.parametrize(("free", "reserved", "overcommit"), [(8, 0, 0), (10, 2, 0), (0, 0, 8), (5, 0, 3)])
def test_reserved_pages_that_are_there_are_granted(tmp_path: Path, free: int, reserved: int, overcommit: int) -> None:
    sysfs = kernel(tmp_path, free=free, reserved=reserved, overcommit=overcommit)
    found = grant_huge_pages("reserved", 8 * PAGE, sysfs)
    assert (found.granted, found.problem) == ("reserved", "")


@pytest.mark.parametrize(("free", "reserved"), [(0, 0), (7, 0), (9, 2)])
def test_reserved_pages_that_are_missing_are_refused_before_the_store_serves(
    tmp_path: Path, free: int, reserved: int
) -> None:
    with pytest.raises(HugePagesMissing, match=r"8 pages of 2 MiB are needed, .* raise vm.nr_hugepages by"):
        grant_huge_pages("reserved", 8 * PAGE, kernel(tmp_path, free=free, reserved=reserved))


def test_a_store_without_its_reserved_pages_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_SYSFS", kernel(tmp_path))
    monkeypatch.setattr(huge_pages.grant_huge_pages, "__defaults__", (tmp_path,))
    with pytest.raises(SettingsProblem, match="huge_pages = reserved"):
        build_store(KvStoreConfig(socket_path="kv.sock", huge_pages="reserved"))


def test_transparent_pages_that_are_refused_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_num_mapped_huge", lambda address: 0)
    monkeypatch.setattr(huge_pages.grant_huge_pages, "__defaults__", (kernel(tmp_path),))
    store = build_store(KvStoreConfig(socket_path="kv.sock", memory_bytes=1 << 20, chunk_bytes=1 << 18))
    stats = make_stats(store, "", Caller(""))
    assert stats.huge_pages == "off"
    assert "shmem_enabled is never: write 'advise' there" in stats.huge_pages_problem
    assert store.scopes.open("a", b"f", 4096), "it serves all the same"
    store.close()


def test_transparent_pages_that_are_there_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_num_mapped_huge", lambda address: PAGE)
    found = grant_huge_pages("transparent", 8 * PAGE, kernel(tmp_path, shmem="advise"))
    assert (found.granted, found.problem) == ("transparent", "")


def test_memory_that_the_system_refuses_later_is_a_problem_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Arena(1 << 20, 1 << 18, "off")
    pool = space.pool("a", 4096)

    def refuse(*args: object) -> None:
        raise MemoryError("cannot have 2097152 bytes of shared memory: Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(arena, "Chunk", refuse)
        assert space.allocate(pool) is None
        assert "Cannot allocate memory" in space.problem
    assert space.allocate(pool) is not None
    assert space.problem == ""
    space.close()


def test_a_tenant_is_not_told_of_others_problems() -> None:
    store = build_store(KvStoreConfig(socket_path="kv.sock", memory_bytes=1 << 20, chunk_bytes=1 << 18))
    store.arena.problem = "memory: none"
    assert list(make_stats(store, "", Caller("")).problems) == ["memory: none"]
    assert make_stats(store, "a", Caller("a")) == pb.StatsResponse(
        memory_bytes=1 << 20,
        huge_pages=store.huge_pages.granted,
        huge_pages_problem=store.huge_pages.problem,
    )
    store.close()
