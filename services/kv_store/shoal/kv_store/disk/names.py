"""Numbers for strings that many records share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

MAX_NAMES = 65_535


class NameTable:
    """Gives each distinct byte string a number below 65,535 while something uses it."""

    def __init__(self, max_names: int = MAX_NAMES, names: Iterable[tuple[bytes, int]] = ()) -> None:
        """`names` are pairs of name and number of uses, in order of their numbers."""
        self._max_names = min(max_names, MAX_NAMES)
        self._names: list[bytes] = []
        self._uses = array("Q")
        self._free: list[int] = []
        for name, uses in names:
            if not uses:
                self._free.append(len(self._names))
            self._names.append(name)
            self._uses.append(uses)
        self._numbers = {name: number for number, name in enumerate(self._names) if self._uses[number]}

    def __getitem__(self, number: int) -> bytes:
        return self._names[number]

    def items(self) -> list[tuple[bytes, int]]:
        """Every name and its uses, in order of the numbers."""
        return list(zip(self._names, self._uses, strict=True))

    def has_room_for(self, name: bytes) -> bool:
        """Whether `use` would succeed."""
        return name in self._numbers or bool(self._free) or len(self._names) < self._max_names

    def use(self, name: bytes) -> int:
        """The number of `name`, with one more use. Raises OverflowError when all numbers are taken."""
        number = self._numbers.get(name)
        if number is None:
            if not self.has_room_for(name):
                raise OverflowError(f"there are {self._max_names} different names already")
            if self._free:
                number = self._free.pop()
                self._names[number] = name
            else:
                number = len(self._names)
                self._names.append(name)
                self._uses.append(0)
            self._numbers[name] = number
        self._uses[number] += 1
        return number

    def release(self, number: int) -> None:
        """One use less."""
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._numbers[self._names[number]]
            self._names[number] = b""
            self._free.append(number)
