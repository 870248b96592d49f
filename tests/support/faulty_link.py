"""A TCP connection that goes wrong: everything passes through here, and some of it does not arrive as it was sent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class FaultyLink:
    """Faults by the number of bytes that came down over all connections; changed while it runs."""

    port: int
    far_address: tuple[str, int]
    cut_at: list[int] = field(default_factory=list)
    """Connections end after so many bytes."""
    flip_at: int = -1
    """This byte arrives as another one."""
    stall_at: int = -1
    """From here on nothing arrives, and nothing ends."""
    refuse: bool = False
    """Connections end as soon as they are made."""
    on_cut: Callable[[], None] = lambda: None
    """Called when a connection was cut."""
    close_port: Callable[[], None] = lambda: None
    """Nobody listens from then on."""
    num_bytes: int = 0
    num_connections: int = 0
    _ends: list[socket.socket] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def pass_down(self, source: socket.socket, target: socket.socket) -> None:
        while data := bytearray(source.recv(1 << 16)):
            start, end = self.num_bytes, self.num_bytes + len(data)
            if start <= self.flip_at < end:
                data[self.flip_at - start] ^= 0x10
            if 0 <= self.stall_at < end:
                target.sendall(data[: max(0, self.stall_at - start)])
                self.num_bytes = max(start, self.stall_at)
                self._over.wait(30)
                return
            cut = next((at for at in self.cut_at if start <= at < end), None)
            if cut is not None:
                self.cut_at.remove(cut)
                data = data[: cut - start]
                end = cut
            self.num_bytes = end
            target.sendall(data)
            if cut is not None:
                self.on_cut()
                return

    def close(self) -> None:
        self._over.set()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def connect(self, near: socket.socket) -> None:
        self.num_connections += 1
        if self.refuse:
            near.close()
            return
        far = socket.create_connection(self.far_address, 5)
        self._ends += [near, far]
        threading.Thread(target=self._run, args=(far, near, True), daemon=True).start()
        threading.Thread(target=self._run, args=(near, far, False), daemon=True).start()

    def _run(self, source: socket.socket, target: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            if down:
                self.pass_down(source, target)
            else:
                while data := source.recv(1 << 16):
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty_link(far_address: tuple[str, int], host: str = "127.0.0.1") -> Iterator[FaultyLink]:
    """A link to `far_address`, ended with the context."""
    with socket.create_server((host, 0)) as listener:
        link = FaultyLink(listener.getsockname()[1], far_address)

        def accept() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                link.connect(near)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()

        def close_port() -> None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            accepting.join(timeout=5)
            listener.close()

        link.close_port = close_port
        try:
            yield link
        finally:
            close_port()
            link.close()
