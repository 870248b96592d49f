"""Which stores there are: a fixed list, or a file that is read again when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MAX_FILE_BYTES: Final = 1 << 20
MAX_HOSTS: Final = 1024


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`. Raises ValueError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no address; give host:port")
    return host, int(port)


class Addresses:
    """The hosts, this store's own among them, in order."""

    def __init__(self, peers: str, own: str) -> None:
        """peers: addresses (host:port) with commas between them, or `file:` and the path of a file with one a line.

        Raises ValueError for addresses that are none, OSError for a file that cannot be read.
        """
        split_address(own)
        self.own = own
        self._path = Path(peers.removeprefix("file:")) if peers.startswith("file:") else None
        self._seen: tuple[int, int] | None = None
        self.hosts = self._with_own([]) if self._path else self._with_own(peers.split(","))
        self.problem = ""
        """Why the file was not read the last time; the hosts are those of the time before."""
        if self._path is not None:
            self._read()

    def refresh(self) -> bool:
        """Reads the file if it changed; whether the hosts did."""
        if self._path is None:
            return False
        before = self.hosts
        try:
            self._read()
            self.problem = ""
        except (OSError, ValueError) as error:
            self.problem = f"peers: {error}"
        return self.hosts != before

    def _read(self) -> None:
        if self._path is None:
            return
        found = self._path.stat()
        seen = (found.st_mtime_ns, found.st_ino)
        if seen == self._seen:
            return
        if found.st_size > MAX_FILE_BYTES:
            raise ValueError(f"a file of {found.st_size} bytes; at most {MAX_FILE_BYTES}")
        lines = self._path.read_text().splitlines()
        self.hosts = self._with_own([line.partition("#")[0] for line in lines])
        self._seen = seen

    def _with_own(self, given: list[str]) -> tuple[str, ...]:
        hosts = {address.strip() for address in given} - {""} | {self.own}
        if len(hosts) > MAX_HOSTS:
            raise ValueError(f"{len(hosts)} stores; at most {MAX_HOSTS}")
        for host in hosts:
            split_address(host)
        return tuple(sorted(hosts))
