"""`shoal kv` against a store in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shoal.client.cli.app import cli
from shoal.client.cli.running import RunningMesh, recorded
from shoal.kv_client import KvClient, KvClientOptions
from support.eventually import eventually
from support.kv_store_process import start_kv_store
from support.kv_store_running import BLOCK_BYTES, ROOT, key, payload

KEYS = [key(number) for number in range(1, 9)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a store with two tenants and a disk, which has 8 blocks of tenant a."""
    disk = (f"--disk-folder={tmp_path / 'disk'}", "--disk-bytes=33554432", "--disk-segment-bytes=1048576")
    async with filled_store(tmp_path, *disk) as socket:
        yield socket


@asynccontextmanager
async def filled_store(folder: Path, *flags: str) -> AsyncIterator[Path]:
    tenants = folder / "tenants.toml"
    tables = [f'["{name}"]\ntoken_sha256 = "{sha256(name.encode()).hexdigest()}"\n' for name in ("a", "b", "*")]
    tenants.write_text("".join(tables))
    async with start_kv_store(folder, f"--tenants-file={tenants}", *flags):
        settings = {"tenant": "a", "fingerprint": b"f", "token": "a", "block_bytes": BLOCK_BYTES}
        client = KvClient(
            KvClientOptions(socket_path=str(folder / "kv.sock"), num_staging_blocks=8, timeout_s=10, **settings)  # type: ignore[arg-type]
        )
        payloads = [payload(number) for number in range(1, 9)]
        result = await asyncio.to_thread(client.put, KEYS, payloads, parent_key=ROOT, namespace_key=ROOT)
        assert result.num_visible == 8
        yield folder / "kv.sock"
        client.close()


async def shoal_kv(store: Path, *arguments: str, token: str = "*") -> Result:
    command = ["kv", *arguments, "--socket", str(store), "--token", token]
    return await asyncio.to_thread(CliRunner().invoke, cli, command)


async def data_of(store: Path, *arguments: str, token: str = "*") -> Any:
    result = await shoal_kv(store, *arguments, "--json", token=token)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_stats_and_blocks_are_shown_to_those_who_may_see_them(store: Path) -> None:
    async def are_on_disk() -> bool:
        return bool((await data_of(store, "stats"))[0]["num_disk_blocks"] == 8)

    await eventually(are_on_disk, "the blocks are on disk")
    text = (await shoal_kv(store, "stats")).stdout
    assert "memory" in text
    assert "64.0 KiB" in text
    assert "stored" in text
    (stats,) = await data_of(store, "stats", token="b")
    assert (stats["num_blocks"], stats["counters"]) == (0, {})
    blocks = await data_of(store, "ls")
    assert {block["key"] for block in blocks} == {each.hex() for each in KEYS}
    assert blocks[1]["parent_key"] == blocks[0]["key"]
    assert all(block["in_memory"] and block["on_disk"] and block["tenant"] == "a" for block in blocks)
    assert await data_of(store, "ls", token="b") == []
    table = (await shoal_kv(store, "ls", "--limit", "3")).stdout
    assert table.count("memory disk") == 3
    assert "--limit 0 shows all" in table


async def test_wrong_tokens_are_told(store: Path) -> None:
    for token, words in (("x", "--token"), ("b", "the operator's token")):
        result = await shoal_kv(store, "drain", token=token)
        assert result.exit_code == 1
        assert words in result.stderr
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["kv", "stats", "--endpoint", "127.0.0.1:1"])
    assert "no KV store answers at 127.0.0.1:1" in result.stderr
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["kv", "stats", "--endpoint", "h:1", "--socket", "s"])
    assert "not both" in result.stderr


async def test_the_store_of_the_mesh_that_runs_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", str(tmp_path / "run"))
    async with start_kv_store(tmp_path) as started:
        store = started.logged("serving")["address"]
        with recorded(RunningMesh("a", "127.0.0.1:1", 5)), recorded(RunningMesh("b", "127.0.0.1:2", 6, store)):
            result = await asyncio.to_thread(CliRunner().invoke, cli, ["kv", "stats"])
            assert "visible" in result.stdout, result.output
            with recorded(RunningMesh("c", "127.0.0.1:3", 7, "127.0.0.1:4")):
                result = await asyncio.to_thread(CliRunner().invoke, cli, ["kv", "stats"])
                assert f"{store} (b), 127.0.0.1:4 (c)" in result.stderr


async def test_a_store_is_drained_and_then_verified(store: Path) -> None:
    result = await shoal_kv(store, "drain")
    assert (result.exit_code, result.stdout) == (0, "drained: everything is on disk\n")
    assert "takes no more blocks" in (await shoal_kv(store, "stats")).stdout
    (progress,) = await data_of(store, "verify")
    assert (progress["num_done"], progress["num_memory_verified"], progress["num_disk_verified"]) == (8, 8, 8)
    assert (progress["num_wrong"], progress["done"]) == (0, True)
    for path in (store.parent / "disk").iterdir():
        data = path.read_bytes()
        if payload(5) in data:
            path.write_bytes(data.replace(payload(5), payload(6)))
    result = await shoal_kv(store, "verify")
    assert result.exit_code == 1
    assert "1 copies were wrong and are gone" in result.stdout
    assert "takes blocks again" in (await shoal_kv(store, "drain", "--resume")).stdout


async def test_a_store_without_a_disk_is_not_drained(tmp_path: Path) -> None:
    async with filled_store(tmp_path) as store:
        result = await shoal_kv(store, "drain")
    assert result.exit_code == 1
    assert result.stdout == "not drained: 8 blocks are in memory only: there is no disk tier\n"
