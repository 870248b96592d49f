"""The engine process: `python -P -m shoal.model_worker.engine_process FD`, started by the front and by nobody else.

It has one channel, the socket FD, whose first frame is the configuration. It ends when told to, when the front is gone,
or when the runner fails (whose state is then unknown); it never restarts anything itself. SIGUSR1 has it write where
each of its threads is to standard error: the front asks for that before it kills an engine that hangs.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec
import structlog

from shoal.model_worker.channel import ChannelClosed, EngineChannel
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine import Engine
from shoal.model_worker.engine_failure import EngineFailure, describe_failure
from shoal.model_worker.engine_setup import EngineParts, Progress, SetupError, set_up
from shoal.model_worker.messages import Broken, Command, Loading, Ready, decode_command, encode
from shoal.telemetry import setup_logs, setup_traces

SetUp = Callable[[WorkerConfig, Progress], EngineParts]
_PR_SET_PDEATHSIG = 1
_log = structlog.get_logger("shoal.model_worker.engine")


class ChannelInbox:
    """The commands that arrive over the channel."""

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel

    def receive(self, *, wait: bool) -> Iterator[Command]:
        """See `engine.Inbox`."""
        return map(decode_command, self._channel.receive(wait=wait))

    def wait(self, timeout_s: float) -> None:
        """See `engine.Inbox`."""
        self._channel.wait(timeout_s)


def main(set_up: SetUp = set_up) -> NoReturn:
    """Runs the engine to its end. Exit status 0 when it was told to end or its front went away, 1 when it failed.

    Nothing is torn down: after an error of its own, CUDA's exit handlers may wait for a device that never answers.
    """
    end_with_parent()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # they reach the whole process group; the front decides when to end
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    status = _run(EngineChannel(socket.socket(fileno=int(sys.argv[1]))), set_up)
    sys.stderr.flush()
    os._exit(status)


def _run(channel: EngineChannel, set_up: SetUp) -> int:
    try:
        first, *early = channel.receive(wait=True)
        assert not early, "commands before the engine was ready"
        config = msgspec.msgpack.decode(first, type=WorkerConfig)
        setup_logs("model_worker.engine", level=config.log_level, log_format=config.log_format)
        if config.device == "cpu":
            yield_cores(config.engine_nice)
        setup_traces("model_worker.engine", config.otlp_endpoint)  # ends with the process; its last spans may be lost
        return serve(channel, config, set_up)
    except ChannelClosed:
        return 0


def serve(channel: EngineChannel, config: WorkerConfig, set_up: SetUp) -> int:
    """Loads, says so, and runs the loop."""
    try:
        parts = set_up(config, lambda stage, fraction: channel.send(encode(Loading(stage, fraction))))
    except ChannelClosed:
        raise
    except (OSError, SetupError) as error:
        failure = EngineFailure("setup", f"cannot serve {config.model or config.device}: {error}")
        channel.send(encode(Broken(failure)))
        return 1
    except Exception as error:
        return _fail(channel, config, error)
    channel.send(encode(Ready(parts.info)))
    # The model and its modules live as long as the process: no collection needs to look at them again.
    gc.collect()
    gc.freeze()
    inbox = ChannelInbox(channel)
    if parts.offload is not None:
        parts.offload.wake = channel.wake
    engine = Engine(
        parts.scheduler,
        parts.cache,
        parts.runner,
        inbox,
        lambda frame: channel.send(encode(frame)),
        offload=parts.offload,
    )
    try:
        engine.run()
    except ChannelClosed:
        raise
    except Exception as error:
        return _fail(channel, config, error)
    return 0


def _fail(channel: EngineChannel, config: WorkerConfig, error: Exception) -> int:
    # Without the frames' variables: showing a tensor would ask a device that may be gone.
    _log.error("the engine failed", traceback="".join(traceback.format_exception(error)))
    channel.send(encode(Broken(describe_failure(error, config))))
    return 1


def yield_cores(niceness: int) -> None:
    """Lets whoever carries tokens have a core at once. Before any thread is started: each has its own niceness.

    Step N + 1 computes on all cores while the tokens of step N pass the front, Envoy, the gateway and Envoy again. With
    equal niceness each hop waited up to 3 ms for a core: 7.5 ms from the step's end to the client, 1.9 ms with 19 (two
    cores, one stream). It counts among the processes of one session or container only (autogroups, cgroups).
    """
    os.nice(niceness)


def end_with_parent() -> None:
    """Has the kernel kill this process when the front dies, even in the middle of a long step. Linux only."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call took effect
            os._exit(0)


if __name__ == "__main__":
    main()
