"""`python -m shoal.operator.follower`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio
import structlog

from shoal.config import describe, load_or_exit
from shoal.operator.envoy import Endpoint, endpoints_file
from shoal.operator.envoy.config import XDS_FOLDER, eds_file, render
from shoal.operator.follower.config import FollowerConfig
from shoal.operator.follower.following import MAX_RESPONSE_BYTES, Follower
from shoal.operator.substrate.run_dir import replace_file
from shoal.rpc.server import stop_signal
from shoal.telemetry import setup_logs


def main() -> None:
    """Follows until SIGTERM. Exits 2 for wrong settings, 1 when files cannot be written, or certificates not read."""
    config = load_or_exit(FollowerConfig, program="shoal-follower")
    setup_logs("follower", level=config.log_level)
    log = structlog.get_logger("shoal.follower")
    log.info("starting", **describe(config))
    try:
        (Path(config.folder) / XDS_FOLDER).mkdir(mode=0o700, exist_ok=True)
        asyncio.run(_follow(config))
    except OSError as error:
        log.error("cannot follow", error=str(error))
        sys.exit(1)


async def _follow(config: FollowerConfig) -> None:
    stop = stop_signal()
    keepalive_ms = int(config.keepalive_s * 1e3)
    options = [
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ]

    def write(cluster: str, endpoints: Sequence[Endpoint]) -> None:
        replace_file(Path(config.folder), eds_file(cluster), render(endpoints_file(cluster, endpoints)))

    async with _channel(config, options) as channel:
        node = (config.service_cluster, config.service_node)
        following = asyncio.create_task(Follower(channel, node, config.clusters.split(","), write).run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if following.done():
            following.result()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def _channel(config: FollowerConfig, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
    """Raises OSError."""
    if not config.control_plane_ca:
        return grpc.aio.insecure_channel(config.control_plane, options)
    authority = Path(config.control_plane_ca).read_bytes()
    return grpc.aio.secure_channel(config.control_plane, grpc.ssl_channel_credentials(authority), options)


if __name__ == "__main__":
    main()
