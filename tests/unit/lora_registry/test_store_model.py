"""The store against a dictionary, through deaths, damage and lack of room."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.lora_registry.errors import Damaged, NoRoom
from shoal.lora_registry.store import AdapterStore, StoreLimits
from support.adapters import CONFIG, WEIGHTS, write_adapter
from support.faulty_store_disk import Died, FaultyDisk

NAMES = st.sampled_from(["a", "b/c", "D"])
NUM_ADAPTERS, ROOM = 5, 3
ADAPTERS = st.integers(0, NUM_ADAPTERS - 1)


@functools.cache
def sources() -> list[Path]:
    """Written once: they are only read."""
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    atexit.register(shutil.rmtree, folder)
    return [write_adapter(folder / str(seed), seed=seed) for seed in range(NUM_ADAPTERS)]


class StoreLife(RuleBasedStateMachine):
    """`self.names`: name -> number of its version and which adapter that is. `self.numbers`: the last one given."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lora-"))
        self.names: dict[str, tuple[int, int]] = {}
        self.numbers: dict[str, int] = {}
        self.digests: dict[int, str] = {}
        self.content = [(source / WEIGHTS).read_bytes() for source in sources()]
        size = len(self.content[0]) + (sources()[0] / CONFIG).stat().st_size
        self.limits = StoreLimits(max_bytes=ROOM * size, max_adapter_bytes=size)
        self.store = AdapterStore(self.folder, self.limits)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    @rule(name=NAMES, adapter=ADAPTERS)
    def publish(self, name: str, adapter: int) -> None:
        pointed = {each for _, each in self.names.values()}
        kept = {record.digest for record in self.store.versions()}
        try:
            published = self.store.publish(name, sources()[adapter], "")
        except NoRoom:
            assert self.digests.get(adapter) not in kept
            assert len(pointed) == ROOM
            return
        self.digests[adapter] = published.record.digest
        assert published.changed == (self.names.get(name, (0, -1))[1] != adapter)
        self.expect(name, adapter)
        assert published.name.current == self.names[name][0]

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        assert self.store.remove(name) == (name in self.names)
        self.names.pop(name, None)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = AdapterStore(self.folder, self.limits)
        assert not self.store.dropped

    @rule(name=NAMES, adapter=ADAPTERS, step=st.integers(1, 30), moment=st.sampled_from(["before", "midst", "after"]))
    def die_while_publishing(self, name: str, adapter: int, step: int, moment: Any) -> None:
        self.store.close()
        counting = FaultyDisk(0, "before", dies=True)
        AdapterStore(self.folder, self.limits, disk=counting).close()
        disk = FaultyDisk(counting.num_calls + step, moment, dies=True)
        dying, is_done = AdapterStore(self.folder, self.limits, disk=disk), False
        try:
            dying.publish(name, sources()[adapter], "")
            is_done = True
        except (Died, NoRoom):
            pass
        dying.close()
        self.store = AdapterStore(self.folder, self.limits)
        assert not self.store.dropped
        found = self.store.resolve(name)
        before = self.names.get(name)
        if found is not None and self.read(found[1].digest) == self.content[adapter]:
            self.digests[adapter] = found[1].digest
            self.expect(name, adapter)
        else:
            assert not is_done, "what was acknowledged is there"
            assert (found is None) == (before is None)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), at_start=st.booleans())
    def flip_a_bit(self, data: st.DataObject, at_start: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.names)))
        digest = self.digests[self.names[name][1]]
        path = self.folder / "versions" / digest / WEIGHTS
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        if at_start:
            self.store.close()
            self.store = AdapterStore(self.folder, self.limits)
            assert f"version {digest}" in self.store.dropped
        else:
            try:
                self.read(digest)
                raise AssertionError("it was given away")
            except Damaged:
                self.store.drop(digest)
        self.names = {each: found for each, found in self.names.items() if self.digests[found[1]] != digest}

    @invariant()
    def is_as_expected(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {record.name: record.current for record in self.store.names()} == {
            name: number for name, (number, _) in self.names.items()
        }
        for name, (number, adapter) in self.names.items():
            found = self.store.resolve(name)
            assert found is not None
            assert found[0] == number
            assert found[1].digest == self.digests[adapter]
            assert self.read(found[1].digest) == self.content[adapter]
        assert self.store.used_bytes <= self.limits.max_bytes
        on_disk = {path.name for path in (self.folder / "versions").iterdir()}
        assert on_disk == {record.digest for record in self.store.versions()}
        assert not list((self.folder / "incoming").iterdir())

    def read(self, digest: str) -> bytes:
        with self.store.open(digest, WEIGHTS) as file:
            return b"".join(chunk for _, chunk in file.chunks())

    def expect(self, name: str, adapter: int) -> None:
        if self.names.get(name, (0, -1))[1] != adapter:
            self.numbers[name] = self.numbers.get(name, 0) + 1
            self.names[name] = (self.numbers[name], adapter)


TestStoreLife = StoreLife.TestCase
TestStoreLife.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
