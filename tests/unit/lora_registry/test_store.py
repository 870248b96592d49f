"""The store: what it keeps, what it makes room for, what it notices."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.lora_registry.adapters import BaseModel
from shoal.lora_registry.errors import AdapterRefused, Damaged, NoRoom, NotKept
from shoal.lora_registry.store import AdapterStore, Disk, StoreLimits
from shoal.lora_registry.store.records import NameRecord, encode_record, read_record
from support.adapters import CONFIG, WEIGHTS, write_adapter
from support.faulty_store_disk import Died, FaultyDisk, Moment

MOMENTS: tuple[Moment, ...] = ("before", "midst", "after")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Alike in size, and each another one."""
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), seed=seed) for seed in range(5)]


def size_of(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (CONFIG, WEIGHTS))


def opened(folder: Path, adapters: list[Path], *, room: int = 3, disk: Disk | None = None, **more: Any) -> AdapterStore:
    """With room for so many adapters."""
    num_bytes = room * size_of(adapters[0])
    return AdapterStore(folder, StoreLimits(max_bytes=num_bytes, max_adapter_bytes=num_bytes), disk=disk, **more)


def read(store: AdapterStore, digest: str, file: str = WEIGHTS) -> bytes:
    with store.open(digest, file) as found:
        return b"".join(chunk for _, chunk in found.chunks())


def clock() -> Callable[[], float]:
    ticks = itertools.count(1)
    return lambda: float(next(ticks))


def test_names_move_and_versions_stay(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        first = store.publish("sql", adapters[0], "here")
        assert (first.name.current, first.changed, first.record.uri) == (1, True, "here")
        again = store.publish("sql", adapters[0], "elsewhere")
        assert (again.name.current, again.changed, again.record) == (1, False, first.record)
        second = store.publish("sql", adapters[1], "here")
        assert (second.name.current, second.changed) == (2, True)
        assert store.resolve("sql") == (2, second.record)
        assert store.resolve("sql", 1) == (1, first.record)
        assert store.resolve("sql", 3) is store.resolve("other") is None
        back = store.publish("sql", adapters[0], "here")
        assert (back.name.current, back.record) == (3, first.record), "a number is given once"
        assert read(store, first.record.digest) == (adapters[0] / WEIGHTS).read_bytes()
        assert read(store, first.record.digest, CONFIG) == (adapters[0] / CONFIG).read_bytes()
        assert store.remove("sql")
        assert not store.remove("sql")
        assert store.resolve("sql") is store.resolve("sql", 1) is None
        assert len(store.versions()) == 2
        assert store.publish("sql", adapters[1], "here").name.current == 4, "also after it was away"
        before = (store.names(), store.versions())
    with closing(opened(tmp_path, adapters)) as store:
        assert (store.names(), store.versions()) == before
        assert not store.dropped


def test_room_is_made_of_what_nobody_points_to(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters, clock=clock())) as store:
        digests = [store.publish("a", adapter, "").record.digest for adapter in adapters[:3]]
        assert store.resolve("a", 1) is not None, "asked for: the second one is the oldest"
        store.publish("b", adapters[3], "")
        assert store.resolve("a", 2) is None
        assert {record.digest for record in store.versions()} >= {digests[0], digests[2]}
        store.publish("c", adapters[4], "")
        with pytest.raises(NotKept):
            store.open(digests[0], WEIGHTS)
        room = store.limits.max_bytes
        size = size_of(adapters[0])
        with pytest.raises(NoRoom, match=rf"{size} bytes does not fit: {room} of {room} bytes are taken by 3 versions"):
            store.publish("d", adapters[0], "")
        # What is there needs none.
        assert not store.publish("c", adapters[4], "").changed
        store.publish("d", adapters[4], "")
        assert store.remove("b")
        store.publish("e", adapters[0], "")
        assert store.used_bytes == room


def test_one_adapter_is_not_too_large(tmp_path: Path, adapters: list[Path]) -> None:
    limits = StoreLimits(max_bytes=1 << 30, max_adapter_bytes=100)
    with (
        closing(AdapterStore(tmp_path, limits)) as store,
        pytest.raises(AdapterRefused, match=rf"{size_of(adapters[0])} bytes; one adapter may have 100"),
    ):
        store.publish("a", adapters[0], "")


def test_what_is_read_goes_on_when_its_version_goes(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters, room=1)) as store:
        digest = store.publish("a", adapters[0], "").record.digest
        with store.open(digest, WEIGHTS) as file:
            store.remove("a")
            store.publish("b", adapters[1], "")
            assert file.read(0) == (adapters[0] / WEIGHTS).read_bytes()


def test_a_refused_adapter_changes_nothing(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        before = store.publish("a", adapters[0], "")

        def refuse(*facts: object) -> None:
            raise AdapterRefused("another one was meant")

        for source in (adapters[1], adapters[0]):
            with pytest.raises(AdapterRefused, match="another"):
                store.publish("a", source, "", check=refuse)
        with pytest.raises(AdapterRefused, match="the base model"):
            store.publish("a", adapters[1], "", base_model=BaseModel(num_layers=1))
        with pytest.raises(AdapterRefused, match="the base model"):
            store.fits(before.record.digest, BaseModel(num_layers=1))
        assert (store.resolve("a"), len(store.versions())) == ((1, before.record), 1)
        assert not list((tmp_path / "incoming").iterdir())


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "record.json"])
@pytest.mark.parametrize("position", [0, 9, 200, -1])
def test_a_flipped_bit_is_found_at_the_start(tmp_path: Path, adapters: list[Path], name: str, position: int) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        bad = store.publish("a", adapters[0], "").record.digest
        good = store.publish("b", adapters[1], "").record.digest
    flip(tmp_path / "versions" / bad / name, position)
    with closing(opened(tmp_path, adapters)) as store:
        assert (store.resolve("a"), store.dropped) == (
            None,
            [f"version {bad}", "name 'a', whose version is gone"],
        )
        assert read(store, good) == (adapters[1] / WEIGHTS).read_bytes()
        assert store.publish("a", adapters[0], "").name.current == 2, "its numbers go on"


def test_a_file_that_is_cut_or_gone_is_found_at_the_start(tmp_path: Path, adapters: list[Path]) -> None:
    for name, number in itertools.product((CONFIG, WEIGHTS, "record.json"), (0, 1)):
        with closing(opened(tmp_path, adapters)) as store:
            path = tmp_path / "versions" / store.publish("a", adapters[0], "").record.digest / name
        if number:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
        with closing(opened(tmp_path, adapters)) as store:
            assert store.resolve("a") is None


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        digest = store.publish("a", adapters[0], "").record.digest
        store.publish("b", adapters[0], "")
        flip(tmp_path / "versions" / digest / WEIGHTS, -1)
        with store.open(digest, WEIGHTS) as file, pytest.raises(Damaged):
            file.read(10)
        assert sorted(record.name for record in store.drop(digest)) == ["a", "b"]
        assert store.drop(digest) == []
        assert store.contents() == ([], [])
        assert store.publish("a", adapters[0], "").name.current == 2


def test_a_damaged_name_is_forgotten(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        digest = store.publish("a", adapters[0], "").record.digest
    [path] = (tmp_path / "names").iterdir()
    flip(path, 12)
    with closing(opened(tmp_path, adapters)) as store:
        assert (store.names(), [record.digest for record in store.versions()]) == ([], [digest])
        assert store.dropped == [f"name {path.name}"]


def test_what_others_put_there_is_no_version(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)) as store:
        digest = store.publish("a", adapters[0], "").record.digest
    (tmp_path / "versions" / "lost+found").mkdir()
    (tmp_path / "versions" / ("0" * 64)).mkdir()
    (tmp_path / "names" / "notes.txt").write_text("x")
    with closing(opened(tmp_path, adapters)) as store:
        assert [record.digest for record in store.versions()] == [digest]


def test_records_have_all_their_bytes(tmp_path: Path) -> None:
    record = NameRecord("a", 3, 3, ((1, "0" * 64), (3, "1" * 64)))
    path = tmp_path / "record"
    path.write_bytes(encode_record(record))
    assert read_record(path, NameRecord) == record
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", json.dumps({"name": "b"}).encode() + whole[whole.index(b"\n") :]):
        path.write_bytes(content)
        assert read_record(path, NameRecord) is None
    assert read_record(tmp_path / "absent", NameRecord) is None


def test_the_folder_is_one_stores_alone(tmp_path: Path, adapters: list[Path]) -> None:
    with closing(opened(tmp_path, adapters)), pytest.raises(BlockingIOError, match="a store has one registry"):
        opened(tmp_path, adapters)
    opened(tmp_path, adapters).close()


@contextmanager
def dying(folder: Path, adapters: list[Path], disk: FaultyDisk) -> Iterator[AdapterStore]:
    """Ends at the death, and then lets others have the folder, as the kernel does."""
    store = opened(folder, adapters, room=2, disk=disk)
    try:
        yield store
    except Died:
        pass
    finally:
        store.close()


def prepare(folder: Path, adapters: list[Path]) -> int:
    """`a` was the first adapter and is the second; the first one will have to go. Calls that a start takes."""
    counting = FaultyDisk(0, "before", dies=False)
    with closing(opened(folder, adapters, room=2)) as store:
        store.publish("a", adapters[0], "")
        store.publish("a", adapters[1], "")
    with closing(opened(folder, adapters, room=2, disk=counting)):
        return counting.num_calls


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("dies", [True, False])
def test_a_fault_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, adapters: list[Path], moment: Moment, dies: bool
) -> None:
    num_steps = 0
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        num_start = prepare(folder, adapters)
        disk, acknowledged = FaultyDisk(num_start + step, moment, dies=dies), False
        with dying(folder, adapters, disk) as store:
            try:
                store.publish("a", adapters[2], "")
                acknowledged = True
            except OSError:
                # It goes on: what it says is there can be read, and the next attempt gets through.
                for record in store.names():
                    assert read(store, record.digest or "")
                assert store.publish("a", adapters[2], "").name.digest is not None
                assert store.used_bytes <= store.limits.max_bytes
                acknowledged = True
        with closing(opened(folder, adapters, room=2)) as store:
            assert not store.dropped, "what is there is whole"
            found = store.resolve("a")
            assert found is not None
            wanted = [adapters[2]] if acknowledged else adapters[1:3]
            assert read(store, found[1].digest) in [(each / WEIGHTS).read_bytes() for each in wanted]
            assert not list((folder / "incoming").iterdir())
            assert store.publish("a", adapters[2], "").name.digest == store.names()[0].digest
        if disk.num_calls < num_start + step:
            break
        num_steps += 1
    assert num_steps >= 12, "there must be that many steps to fail at"


def test_several_publish_one_name_at_once(tmp_path: Path, adapters: list[Path]) -> None:
    start = threading.Barrier(len(adapters))
    with closing(opened(tmp_path, adapters, room=len(adapters))) as store:

        def publish(adapter: Path) -> int:
            start.wait(10)
            return store.publish("a", adapter, "").name.current

        with ThreadPoolExecutor(len(adapters)) as threads:
            numbers = sorted(threads.map(publish, adapters))
        assert numbers == [1, 2, 3, 4, 5]
        current = store.resolve("a")
        assert current is not None
        assert current[0] == 5
        assert len({found[1].digest for number in numbers if (found := store.resolve("a", number))}) == 5


def test_several_publish_one_adapter_at_once(tmp_path: Path, adapters: list[Path]) -> None:
    start = threading.Barrier(4)
    with closing(opened(tmp_path, adapters, room=4)) as store:

        def publish(name: str) -> str:
            start.wait(10)
            return store.publish(name, adapters[0], "").record.digest

        with ThreadPoolExecutor(4) as threads:
            digests = set(threads.map(publish, "abcd"))
        assert len(digests) == len(store.versions()) == 1
        assert len(store.names()) == 4
