"""The EDS file as a list of workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.gateway.workers.endpoints import EdsFile, Endpoint, parse_eds
from support.gateway_running import write_workers


async def test_changes_are_seen_and_bad_files_keep_the_last_list(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    updates = EdsFile(path, poll_interval_s=0.01).updates()
    waiting = asyncio.ensure_future(anext(updates))
    write_workers(path, ["127.0.0.1:1"])
    assert await asyncio.wait_for(waiting, 10) == {Endpoint("127.0.0.1:1")}
    waiting = asyncio.ensure_future(anext(updates))
    path.write_text("{")
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    write_workers(path, ["127.0.0.1:2", "127.0.0.1:1"])
    assert await asyncio.wait_for(waiting, 10) == {Endpoint("127.0.0.1:1"), Endpoint("127.0.0.1:2")}
    await updates.aclose()  # type: ignore[attr-defined]


def test_both_spellings_statuses_and_ipv6() -> None:
    data = b"""{"resources": [{"clusterName": "worker", "endpoints": [{"lbEndpoints": [
        {"endpoint": {"address": {"socketAddress": {"address": "::1", "portValue": 5}}}, "healthStatus": "DRAINING"},
        {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 6}}}}]}, {}]}]}"""
    assert parse_eds(data) == {Endpoint("[::1]:5", healthy=False), Endpoint("10.0.0.1:6")}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[]", "expected an object"),
        (b'{"resources": 1}', "must be a list"),
        (b'{"resources": [{"endpoints": [{"lb_endpoints": [{"endpoint": {}}]}]}]}', "address is missing"),
        (
            b'{"resources": [{"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": '
            b'{"address": "h", "port_value": "x"}}}}]}]}]}',
            "port_value",
        ),
    ],
)
def test_what_is_wrong_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_eds(data)
