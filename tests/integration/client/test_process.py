from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from support.fake_gateway import WAIT_S, FakeGateway, Reply

SHOAL = [sys.executable, "-P", "-c", "from shoal.client.cli import main; main()"]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


def test_ctrl_c_cancels_the_request_on_the_server_and_exits_130(gateway: FakeGateway) -> None:
    gateway.script.append(Reply(hold=threading.Event()))
    command = [*SHOAL, "generate", "Hi", "--endpoint", gateway.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 100) == b"Hell"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert process.stderr.read() == b""
    assert gateway.calls[0].ended.wait(WAIT_S)


def test_a_conversation_on_a_terminal(gateway: FakeGateway) -> None:
    """The real thing: a pseudo-terminal, readline, an answer that Ctrl-C stops, a second turn, the end of input."""
    gateway.script.append(Reply(hold=threading.Event()))
    ours, theirs = pty.openpty()
    # Its own session with the terminal as the controlling one: Ctrl-C typed there becomes SIGINT here.
    script = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {SHOAL[-1]}"
    command = [*SHOAL[:-1], script, "chat", "--endpoint", gateway.endpoint]
    environ = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
    ) as process:
        os.close(theirs)
        terminal = Terminal(ours)
        try:
            terminal.expect(b"> ")
            terminal.type(b"first\n")
            terminal.expect(b"Hell")
            terminal.type(b"\x03")
            terminal.expect(b"> ")
            terminal.type(b"second\n")
            terminal.expect(b"Hello from the mesh.")
            terminal.expect(b"> ")
            terminal.type(b"\x04")
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            os.close(ours)
    assert [turn.content for turn in gateway.calls[1].request.chat.messages] == ["first", "Hell", "second"]


class Terminal:
    """Our end of a pseudo-terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def expect(self, wanted: bytes) -> None:
        """Reads until `wanted` shows up, and forgets everything up to its end."""
        deadline_s = time.monotonic() + WAIT_S
        while wanted not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"{wanted!r} did not appear in {self._seen!r}"
            self._seen += os.read(self._fd, 4096)
        self._seen = self._seen.partition(wanted)[2]
