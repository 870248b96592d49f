"""Rows by key, in C and in Python, against a dictionary."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.kv_store.index.key_table import KeyTable
from shoal.kv_store.index.native_keys import NativeKeys
from shoal.kv_store.index.python_keys import PythonKeys

NUMBERS = st.integers(0, 40)


def key(number: int) -> bytes:
    """Keys of which many have equal halves, as somebody who wants collisions would choose them."""
    return (number % 3).to_bytes(8, "little") + (number // 3).to_bytes(8, "big")


class KeysModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[KeyTable] = [NativeKeys(), PythonKeys()]
        self.rows: dict[bytes, int] = {}

    @rule(numbers=st.lists(NUMBERS, max_size=30))
    def add(self, numbers: list[int]) -> None:
        for number in numbers:
            if key(number) not in self.rows:
                rows = {table.add(key(number)) for table in self.tables}
                assert len(rows) == 1
                assert not rows & set(self.rows.values())
                self.rows[key(number)] = rows.pop()

    @rule(numbers=st.lists(NUMBERS, max_size=30))
    def remove(self, numbers: list[int]) -> None:
        for number in numbers:
            row = self.rows.pop(key(number), 0)
            for table in self.tables if row else ():
                table.remove(row)

    @rule(numbers=st.lists(NUMBERS, max_size=8), odd=st.booleans())
    def prefix(self, numbers: list[int], odd: bool) -> None:
        scopes = array("H", [row % 2 for row in range(64)])
        expected = []
        for number in numbers:
            row = self.rows.get(key(number), 0)
            if not row or row % 2 != odd:
                break
            expected.append(row)
        for table in self.tables:
            assert list(table.prefix([key(number) for number in numbers], scopes, odd)) == expected

    @invariant()
    def everything_is_found(self) -> None:
        for table in self.tables:
            assert len(table) == len(self.rows)
            for number in range(41):
                assert table.find(key(number)) == self.rows.get(key(number), 0)
            assert all(table.key(row) == each for each, row in self.rows.items())


KeysModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestKeysModel: Any = KeysModel.TestCase


def test_a_table_grows_and_stays_small() -> None:
    table = NativeKeys()
    keys = [number.to_bytes(16, "big") for number in range(20_000)]
    rows = [table.add(each) for each in keys]
    assert [table.find(each) for each in keys] == rows
    assert table.num_bytes / len(keys) < 30
    for row in rows[::2]:
        table.remove(row)
    assert [table.find(each) for each in keys[1::2]] == rows[1::2]
    assert not any(table.find(each) for each in keys[::2])


def test_a_key_of_another_size_is_refused() -> None:
    table = NativeKeys()
    for call in (table.find, table.add, lambda each: table.prefix([each], array("H", [0]), 0)):
        with pytest.raises(ValueError, match="16 bytes"):
            call(b"short")
