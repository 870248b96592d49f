"""A program for supervisor tests, with nothing but the standard library so that it starts in milliseconds.

    python fake_process.py PORT RECORD NAME [option...]

Serves HTTP on PORT: GET / is 200. Appends `started NAME` and `ended NAME` to RECORD. Options:
    crash-while=FILE    ends with code 3 while FILE exists
    exit-code=N         ends with code N at once
    stubborn            ignores SIGTERM
    linger=S            takes S seconds to end after SIGTERM
    mute                never listens
    grandchild          starts another process in a session of its own
    loading-until=FILE  logs that it loads, and listens once FILE exists
    chatter=N           writes N numbered lines before it listens, and `goodbye` at its end
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keeps quiet."""


def main() -> None:
    """See the module's docstring."""
    port, record, name, options = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    values = dict(option.partition("=")[::2] for option in options)
    print(f"{name} says hello", flush=True)
    with record.open("a") as file:
        file.write(f"started {name}\n")
    if "exit-code" in values:
        sys.exit(int(values["exit-code"]))
    if "crash-while" in values and Path(values["crash-while"]).exists():
        print(f"{name} cannot go on", flush=True)
        sys.exit(3)
    if "grandchild" in values:
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    if "loading-until" in values:
        for percent in (0, 40):
            print(f'{{"event": "loading", "stage": "weights", "percent": {percent}}}', flush=True)
        while not Path(values["loading-until"]).exists():
            time.sleep(0.01)
    for number in range(int(values.get("chatter", 0))):
        print(f"line {number:08d} of a very talkative program", flush=True)
    if "mute" in values:
        signal.pause()
    server = HTTPServer(("127.0.0.1", port), _Handler)

    def end(number: int, frame: FrameType | None) -> None:
        threading.Timer(float(values.get("linger", 0)), server.shutdown).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in values else end)
    server.serve_forever()
    if "chatter" in values:
        print("goodbye", flush=True)
    with record.open("a") as file:
        file.write(f"ended {name}\n")


if __name__ == "__main__":
    main()
