"""From a source to a name: who waits for whom, what is fetched again, what goes on without its caller."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shoal.artifacts import ArtifactError
from shoal.lora_registry.errors import AdapterRefused
from shoal.lora_registry.events import EventLog
from shoal.lora_registry.publishing import FetchOptions, Publisher, Wanted
from shoal.lora_registry.settings_file import AdaptersFileProblem, FollowOptions, SettingsFollower, read_adapters
from shoal.lora_registry.store import AdapterStore, StoreLimits
from support.adapters import CONFIG, WEIGHTS, write_adapter
from support.eventually import eventually
from support.package_index import FileServer, serve


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FileServer]:
    with serve(FileServer()) as server:
        for seed in range(2):
            folder = write_adapter(tmp_path / str(seed), seed=seed)
            for name in (CONFIG, WEIGHTS):
                server.files[f"/{seed}/{name}"] = ((folder / name).read_bytes(), "application/octet-stream")
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    limits = StoreLimits(max_bytes=1 << 20, max_adapter_bytes=1 << 20)
    with closing(AdapterStore(tmp_path / "store", limits)) as opened:
        yield opened


def publisher_of(store: AdapterStore, **options: Any) -> tuple[Publisher, EventLog, list[str]]:
    log, counted = EventLog(store, 16), list[str]()
    given = FetchOptions(**{"work_dir": store.incoming, "timeout_s": 20, **options})
    return Publisher(store, log, given, count=counted.append), log, counted


async def test_one_name_waits_and_another_does_not(store: AdapterStore, web: FileServer) -> None:
    publisher, log, counted = publisher_of(store)
    arrived, release = web.hold(f"/0/{WEIGHTS}")
    first = asyncio.create_task(publisher.publish(Wanted(name="a", uri=f"{web.url}/0")))
    assert await asyncio.to_thread(arrived.wait, 10)
    second = asyncio.create_task(publisher.publish(Wanted(name="a", uri=f"{web.url}/1")))
    other = await publisher.publish(Wanted(name="b", uri=f"{web.url}/1"))
    assert (other.name.current, publisher.num_pending, store.resolve("a")) == (1, 2, None)
    release.set()
    assert [(await each).name.current for each in (first, second)] == [1, 2]
    assert (log.revision, counted, publisher.num_pending) == (3, ["changed"] * 3, 0)
    assert not list(store.incoming.iterdir())


async def test_what_a_caller_left_behind_is_told_all_the_same(store: AdapterStore, web: FileServer) -> None:
    publisher, log, _ = publisher_of(store)
    arrived, release = web.hold(f"/0/{WEIGHTS}")
    call = asyncio.create_task(publisher.publish(Wanted(name="a", uri=f"{web.url}/0")))
    assert await asyncio.to_thread(arrived.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    release.set()
    await eventually(lambda: log.revision == 1, "the name is told")
    assert store.resolve("a") is not None


async def test_only_so_many_are_fetched_at_once(store: AdapterStore, web: FileServer) -> None:
    publisher, _, _ = publisher_of(store, max_concurrent=1)
    arrived, release = web.hold(f"/0/{WEIGHTS}")
    first = asyncio.create_task(publisher.publish(Wanted(name="a", uri=f"{web.url}/0")))
    assert await asyncio.to_thread(arrived.wait, 10)
    second = asyncio.create_task(publisher.publish(Wanted(name="b", uri=f"{web.url}/1")))
    await eventually(lambda: publisher.num_pending == 2, "both are known")
    assert not web.gets(f"/1/{CONFIG}")
    release.set()
    await asyncio.gather(first, second)


async def test_what_is_pinned_and_there_is_not_fetched_again(store: AdapterStore, web: FileServer) -> None:
    publisher, _, _ = publisher_of(store)
    sha256 = hashlib.sha256(web.files[f"/0/{WEIGHTS}"][0]).hexdigest()
    pinned = Wanted(name="a", uri=f"{web.url}/0", sha256=sha256)
    await publisher.publish(pinned)
    web.requests.clear()
    again = await publisher.publish(pinned)
    assert (again.changed, web.requests) == (False, [])
    # Without a digest nobody knows what is behind an address.
    await publisher.publish(Wanted(name="a", uri=f"{web.url}/0"))
    assert web.requests
    by_version = Wanted(name="a", uri=f"{web.url}/0", digest=again.record.digest)
    web.requests.clear()
    await publisher.publish(by_version)
    assert not web.requests
    with pytest.raises(AdapterRefused, match="rank 8 was asked for"):
        await publisher.publish(Wanted(name="a", uri=f"{web.url}/0", sha256=sha256, rank=8))


async def test_adapters_of_another_model_are_refused(store: AdapterStore, web: FileServer, tmp_path: Path) -> None:
    base = tmp_path / "config.json"
    publisher, _, counted = publisher_of(store, base_config=str(base))
    wanted = Wanted(name="a", uri=f"{web.url}/0")
    with pytest.raises(ArtifactError, match="does not exist"):
        await publisher.publish(wanted)
    base.write_text("[]")
    with pytest.raises(AdapterRefused, match="cannot be read"):
        await publisher.publish(wanted)
    base.write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}))
    with pytest.raises(AdapterRefused, match="the base model's is 32 to 32"):
        await publisher.publish(wanted)
    assert (counted, store.contents()) == (["failed"] * 3, ([], []))
    base.write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4,
                                "num_key_value_heads": 2}))  # fmt: skip
    fitting, _, _ = publisher_of(store, base_config=str(base))
    await fitting.publish(wanted)


async def test_what_one_adapter_sets_off_does_not_keep_others_away(
    store: AdapterStore, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, _, _ = publisher_of(store)
    file = tmp_path / "adapters.json"
    file.write_text(json.dumps([{"name": "bad", "uri": "/bad"}, {"name": "good", "uri": f"{web.url}/0"}]))
    publish = publisher.publish

    async def stumble(wanted: Wanted) -> Any:
        if wanted.name == "bad":
            raise RuntimeError("a bug")
        return await publish(wanted)

    monkeypatch.setattr(publisher, "publish", stumble)
    follower = SettingsFollower(file, store, publisher, FollowOptions(poll_s=0.01))
    following = asyncio.create_task(follower.run())
    async with asyncio.timeout(10):
        await follower.looked.wait()
    assert follower.problems == {"bad": "a bug, see the log: RuntimeError"}
    assert store.resolve("good") is not None
    # A file that cannot be read changes nothing, and is told.
    file.write_text("[")
    await eventually(lambda: "" in follower.problems, "the file's problem")
    assert store.resolve("good") is not None
    file.write_text("[]")
    await eventually(lambda: store.resolve("good") is None and not follower.problems, "nothing is wanted any more")
    assert not following.done()
    following.cancel()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "Expected `array`"),
        ('[{"name": "a"}]', "missing required field `uri`"),
        ('[{"name": "a b", "uri": "/a"}]', "matching regex"),
        ('[{"name": "a", "uri": "/a", "path": "/b"}]', "unknown field `path`"),
        ('[{"name": "a", "uri": "/a", "rank": 0}]', ">= 1"),
        ('[{"name": "a", "uri": "/a", "sha256": "0"}]', "matching regex"),
        ('[{"name": "a", "uri": "/a"}, {"name": "a", "uri": "/b"}]', "given twice: a"),
        ("[" + " " * (1 << 20), "more than 1048576 bytes"),
    ],
)
def test_a_settings_file_that_is_wrong_is_told(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "adapters.json"
    path.write_text(text)
    with pytest.raises(AdaptersFileProblem, match=problem):
        read_adapters(path)
    path.unlink()
    with pytest.raises(AdaptersFileProblem, match="No such file"):
        read_adapters(path)
