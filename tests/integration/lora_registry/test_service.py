"""A registry in a process of its own, over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.lora_registry.v1 import lora_registry_pb2 as pb
from shoal.api.lora_registry.v1 import lora_registry_pb2_grpc
from support.adapters import CONFIG, WEIGHTS, write_adapter
from support.lora_registry_process import launch_registry, start_registry
from support.package_index import FileServer, serve


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield lora_registry_pb2_grpc.LoraRegistryServiceStub(channel)


def put_on(server: FileServer, path: str, folder: Path) -> str:
    """The URL of an adapter's folder."""
    for name in (CONFIG, WEIGHTS):
        server.files[f"{path}/{name}"] = ((folder / name).read_bytes(), "application/octet-stream")
    return f"{server.url}{path}"


async def read_file(stub: Any, digest: str, file: Any, offset: int = 0) -> bytes:
    data = b""
    async for part in stub.Fetch(pb.FetchRequest(digest=digest, file=file, offset=offset), timeout=10):
        assert part.offset == offset + len(data)
        data += part.data
    return data


async def test_an_adapter_goes_from_a_web_server_to_a_worker(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sql")
    with serve(FileServer()) as web:
        url = put_on(web, "/sql", folder)
        weights = (folder / WEIGHTS).read_bytes()
        web.drop_after_bytes[f"/sql/{WEIGHTS}"] = [len(weights) // 2]  # a connection that breaks is taken up again
        async with start_registry(tmp_path / "store") as service, connect(service.address) as stub:
            request = pb.PublishRequest(name="sql", uri=url, sha256=hashlib.sha256(weights).hexdigest(), rank=4)
            published = await stub.Publish(request, timeout=10)
            assert (published.version, published.changed) == (1, True)
            resolved = await stub.Resolve(pb.ResolveRequest(name="sql"), timeout=10)
            assert resolved.adapter == published.adapter
            adapter = resolved.adapter
            assert (adapter.rank, adapter.alpha, adapter.scaling, adapter.dtype) == (4, 8.0, 2.0, "F16")
            assert list(adapter.target_modules) == ["q_proj", "v_proj"]
            assert (adapter.base_model.name, adapter.base_model.min_num_layers) == ("org/tiny", 2)
            assert await read_file(stub, adapter.digest, pb.FILE_WEIGHTS) == weights
            assert await read_file(stub, adapter.digest, pb.FILE_CONFIG) == (folder / CONFIG).read_bytes()
            assert "shoal_lora_registry_names 1.0" in await asyncio.to_thread(service.read_metrics)


async def next_batch(watch: Any, *, with_events: bool = True) -> Any:
    """Passes over answers that only say that nothing happened."""
    while True:
        batch = await asyncio.wait_for(watch.read(), 10)
        assert isinstance(batch, pb.WatchResponse), "it ended"
        if batch.snapshot or batch.events or not with_events:
            return batch


async def test_a_fetch_goes_on_from_where_it_broke_off(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, 300_000), np.float32),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((16, 4), np.float32),
    }
    folder = write_adapter(tmp_path / "large", tensors=tensors, target_modules=["q_proj"])
    weights = (folder / WEIGHTS).read_bytes()
    async with start_registry(tmp_path / "store") as service:
        async with connect(service.address) as stub:
            published = await stub.Publish(pb.PublishRequest(name="large", uri=str(folder)), timeout=10)
            digest = published.adapter.digest
            call = stub.Fetch(pb.FetchRequest(digest=digest, file=pb.FILE_WEIGHTS), timeout=10)
            first = await call.read()
            assert (first.offset, len(first.data)) == (0, 1 << 20)
        # That connection is gone.
        async with connect(service.address) as stub:
            start = len(first.data) - 7  # anywhere, not only where a part ended
            rest = await read_file(stub, digest, pb.FILE_WEIGHTS, start)
            assert first.data[:start] + rest == weights
            assert await read_file(stub, digest, pb.FILE_WEIGHTS, len(weights)) == b""
            with pytest.raises(grpc.aio.AioRpcError, match=f"offset: .*; the file has {len(weights)} bytes"):
                await read_file(stub, digest, pb.FILE_WEIGHTS, len(weights) + 1)
            with pytest.raises(grpc.aio.AioRpcError, match="resolve its name again"):
                await read_file(stub, "0" * 64, pb.FILE_WEIGHTS)


async def test_what_happens_is_told_without_gaps(tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    async with start_registry(tmp_path / "store") as service, connect(service.address) as stub:
        watch = stub.Watch(pb.WatchRequest())
        start = await next_batch(watch)
        assert (start.snapshot, start.revision, len(start.events)) == (True, 0, 0)
        for name, folder in (("a", first), ("b", first), ("a", second), ("a", second)):
            await stub.Publish(pb.PublishRequest(name=name, uri=str(folder)), timeout=10)
        assert (await stub.Remove(pb.RemoveRequest(name="b"), timeout=10)).removed
        assert not (await stub.Remove(pb.RemoveRequest(name="b"), timeout=10)).removed
        seen: list[tuple[str, int]] = []
        while len(seen) < 4:
            batch = await next_batch(watch)
            seen += [(event.name, event.version) for event in batch.events]
        assert seen == [("a", 1), ("b", 1), ("a", 2), ("b", 0)], "the same adapter again is no event"
        assert batch.revision == 4
        watch.cancel()
        again = stub.Watch(pb.WatchRequest(epoch=batch.epoch, revision=2))
        missed = await next_batch(again)
        assert [(event.name, event.version) for event in missed.events] == [("a", 2), ("b", 0)]
        assert not missed.snapshot
        again.cancel()
        stranger = stub.Watch(pb.WatchRequest(epoch=batch.epoch + 1, revision=2))
        snapshot = await next_batch(stranger)
        assert (snapshot.snapshot, [event.name for event in snapshot.events]) == (True, ["a"])
        stranger.cancel()
        # A name that has moved on keeps what it pointed to.
        old = await stub.Resolve(pb.ResolveRequest(name="a", version=1), timeout=10)
        assert await read_file(stub, old.adapter.digest, pb.FILE_WEIGHTS) == (first / WEIGHTS).read_bytes()
        parts = [part async for part in stub.List(pb.ListRequest(), timeout=10)]
        [name] = [name for part in parts for name in part.names]
        assert (name.name, name.version, [each.version for each in name.former]) == ("a", 2, [1])
        assert len([each for part in parts for each in part.versions]) == 2


async def is_serving(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_settings_say_what_is_there(tmp_path: Path) -> None:
    """They may change while it runs; what cannot be had keeps nothing else from being served."""
    folders = {name: write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("sql", "chat", "new"))}
    file = tmp_path / "adapters.json"
    listed = [{"name": "sql", "uri": str(folders["sql"])}, {"name": "gone", "uri": str(tmp_path / "absent")}]
    file.write_text(json.dumps(listed))
    flags = (f"--adapters-file={file}", "--adapters-poll-s=0.02", "--adapters-retry-s=0.02")
    async with start_registry(tmp_path / "store", *flags) as service, connect(service.address) as stub:
        assert await is_serving(service.address)
        watch = stub.Watch(pb.WatchRequest())
        assert [event.name for event in (await next_batch(watch)).events] == ["sql"]
        first = await anext(aiter(stub.List(pb.ListRequest(), timeout=10)))
        [problem] = first.problems
        assert problem.name == "gone"
        assert f"{CONFIG} is missing" in problem.message
        with pytest.raises(grpc.aio.AioRpcError, match=r"could not be published: .*is missing"):
            await stub.Resolve(pb.ResolveRequest(name="gone"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="change it there"):
            await stub.Remove(pb.RemoveRequest(name="sql"), timeout=10)
        # Its source comes, and it is tried again.
        write_adapter(tmp_path / "absent", seed=9)
        assert [event.name for event in (await next_batch(watch)).events] == ["gone"]
        await stub.Publish(pb.PublishRequest(name="mine", uri=str(folders["new"])), timeout=10)
        assert [event.name for event in (await next_batch(watch)).events] == ["mine"]
        beside = tmp_path / "adapters.json.next"
        beside.write_text(json.dumps([{"name": "sql", "uri": str(folders["chat"])}]))
        beside.replace(file)
        changes: dict[str, int] = {}
        while len(changes) < 2:
            changes |= {event.name: event.version for event in (await next_batch(watch)).events}
        assert changes == {"sql": 2, "gone": 0}, "what a call has published stays"
        watch.cancel()


async def test_nobody_publishes_where_settings_alone_decide(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sql")
    async with start_registry(tmp_path / "store", "--read-only") as service, connect(service.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="settings alone") as refused:
            await stub.Publish(pb.PublishRequest(name="sql", uri=str(folder)), timeout=10)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_bytes_that_changed_on_disk_are_not_served(tmp_path: Path) -> None:
    """They are fetched again where settings say from where."""
    folder = write_adapter(tmp_path / "sql")
    file = tmp_path / "adapters.json"
    file.write_text(json.dumps([{"name": "sql", "uri": str(folder)}]))
    flags = (f"--adapters-file={file}", "--adapters-poll-s=0.02")
    async with start_registry(tmp_path / "store", *flags) as service, connect(service.address) as stub:
        watch = stub.Watch(pb.WatchRequest())
        [event] = (await next_batch(watch)).events
        digest = event.adapter.digest
        kept = tmp_path / "store" / "versions" / digest / WEIGHTS
        data = bytearray(kept.read_bytes())
        data[-1] ^= 4
        kept.write_bytes(data)
        with pytest.raises(grpc.aio.AioRpcError, match="damaged on disk and is gone; sql is fetched again") as refused:
            await read_file(stub, digest, pb.FILE_WEIGHTS)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        versions: list[int] = []
        while len(versions) < 2:
            versions += [event.version for event in (await next_batch(watch)).events]
        assert versions == [0, 2]
        assert await read_file(stub, digest, pb.FILE_WEIGHTS) == (folder / WEIGHTS).read_bytes()
        assert "shoal_lora_registry_damaged_total 1.0" in await asyncio.to_thread(service.read_metrics)
        watch.cancel()


async def test_death_while_it_publishes_leaves_what_was_there(tmp_path: Path) -> None:
    old, new = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    store = tmp_path / "store"
    with serve(FileServer()) as web:
        url = put_on(web, "/new", new)
        async with await launch_registry(store) as service:
            await service.wait_logged("serving")
            async with connect(service.address) as stub:
                before = await stub.Publish(pb.PublishRequest(name="sql", uri=str(old)), timeout=10)
                arrived, release = web.hold(f"/new/{WEIGHTS}")
                publishing = stub.Publish(pb.PublishRequest(name="sql", uri=url), timeout=10)
                await asyncio.wait_for(asyncio.to_thread(arrived.wait, 10), 10)
                service.signal(signal.SIGKILL)
                with pytest.raises(grpc.aio.AioRpcError):
                    await publishing
                release.set()
            await service.wait_ended()
        assert list((store / "incoming").iterdir()), "something was on its way"
        async with start_registry(store) as service, connect(service.address) as stub:
            assert not list((store / "incoming").iterdir())
            after = await stub.Resolve(pb.ResolveRequest(name="sql"), timeout=10)
            assert after.adapter == before.adapter
            again = await stub.Publish(pb.PublishRequest(name="sql", uri=url), timeout=10)
            assert (again.version, again.changed) == (2, True)


async def test_it_serves_when_its_adapters_were_tried_and_ends_without_them(tmp_path: Path) -> None:
    folder, file = write_adapter(tmp_path / "sql"), tmp_path / "adapters.json"
    with serve(FileServer()) as web:
        file.write_text(json.dumps([{"name": "sql", "uri": put_on(web, "/sql", folder)}]))
        arrived, release = web.hold(f"/sql/{WEIGHTS}")
        async with await launch_registry(tmp_path / "store", f"--adapters-file={file}") as service:
            assert await asyncio.to_thread(arrived.wait, 20)
            with pytest.raises(LookupError):
                service.logged("serving")
            service.signal(signal.SIGTERM)
            assert await service.wait_ended(timeout_s=15) == 0, "nobody waits for a server that says nothing"
            release.set()


async def test_a_store_has_one_registry(tmp_path: Path) -> None:
    async with start_registry(tmp_path / "store"), await launch_registry(tmp_path / "store") as second:
        assert await second.wait_ended() == 1
        assert "a store has one registry" in second.logged("cannot serve")["error"]
