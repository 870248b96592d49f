"""Which huge pages the kernel grants. Who asks for reserved ones gets them or hears why not, before a store serves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.kv_store.arena.memory import HUGE_PAGE_BYTES, HugePages, SharedMemory, round_up

_SYSFS: Final = Path("/sys/kernel/mm")
_POOL: Final = "hugepages/hugepages-2048kB"
_PROBE_BYTES: Final = 2 * HUGE_PAGE_BYTES
_RANGE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


class HugePagesMissing(Exception):
    """The kernel's pool has not as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What is had."""

    asked: HugePages
    granted: HugePages
    problem: str = ""
    """Why it is not what was asked for."""


def grant_huge_pages(asked: HugePages, num_bytes: int, sysfs: Path = _SYSFS) -> Granted:
    """What `num_bytes` of memory will have. Raises HugePagesMissing for reserved ones that are not there.

    Transparent ones are a wish that the kernel may refuse, so memory goes without them; reserved ones were set aside by
    somebody for this, and a store that finds none would serve, and refuse every block.
    """
    if asked == "reserved":
        _check_pool(num_bytes, sysfs)
        return Granted(asked, asked)
    if asked == "transparent" and not _grants_transparent():
        return Granted(asked, "off", _why_not(sysfs / "transparent_hugepage/shmem_enabled"))
    return Granted(asked, asked)


def _check_pool(num_bytes: int, sysfs: Path) -> None:
    needed = round_up(num_bytes, HUGE_PAGE_BYTES) // HUGE_PAGE_BYTES
    free, reserved, most_surplus, surplus = (
        _read_number(sysfs / _POOL / name)
        for name in ("free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages")
    )
    available = max(0, free - reserved) + max(0, most_surplus - surplus)
    if available < needed:
        raise HugePagesMissing(
            f"huge_pages = reserved: {needed} pages of 2 MiB are needed, and {available} are free in the kernel's "
            f"pool; raise vm.nr_hugepages by {needed - available}, lower memory_bytes, or ask for transparent ones"
        )


def _grants_transparent() -> bool:
    """Tries it: settings say what may be, not what is."""
    try:
        memory = SharedMemory("probe", _PROBE_BYTES, huge_pages="transparent", readers_only=False)
    except MemoryError:
        return False
    try:
        return _num_mapped_huge(memory.address) > 0
    finally:
        memory.close()


def _num_mapped_huge(address: int) -> int:
    """Bytes on huge pages in the mapping at an address."""
    is_there = False
    try:
        with Path("/proc/self/smaps").open() as lines:
            for line in lines:
                found = _RANGE.match(line)
                if found is not None:
                    is_there = int(found[1], 16) <= address < int(found[2], 16)
                elif is_there and line.startswith("ShmemPmdMapped:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _why_not(setting: Path) -> str:
    try:
        text = setting.read_text().strip()
    except OSError:
        return "this kernel has no transparent huge pages for shared memory"
    chosen = re.search(r"\[(\w+)\]", text)
    if chosen is not None and chosen[1] in ("never", "deny"):
        return f"{setting} is {chosen[1]}: write 'advise' there"
    return f"the kernel granted none, although {setting} is {chosen[1] if chosen is not None else text}"


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
