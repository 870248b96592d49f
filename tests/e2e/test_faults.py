"""Clients vanish, deadlines pass, workers die, operators press Ctrl-C: nothing is lost that should not be."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from shoal.client import Client, DeadlineExceeded, ResourceExhausted, RetryPolicy
from support.eventually import wait_until
from support.shoal_up import MODEL, Up, manifest, shoal_up

LONG = 2000


def idle(up: Up) -> bool:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_used_blocks")
    return all(up.sum_metric(f"shoal_worker_{name}") == 0 for name in names)


def test_a_vanished_client_frees_its_blocks(up: Up, client: Client) -> None:
    with client.stream("Once upon a time", max_tokens=LONG, ignore_eos=True) as stream:
        next(stream)
        wait_until(lambda: not idle(up), "the request shows as running")
    wait_until(lambda: idle(up), "the abandoned request ends")


def test_a_vanished_http_client_frees_its_blocks(up: Up, http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": LONG, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()  # kept: it closes the response when it is collected
        assert next(lines).startswith("data: ")
        wait_until(lambda: not idle(up), "the request shows as running")
    wait_until(lambda: idle(up), "the abandoned request ends")


def test_a_deadline_ends_a_stream_and_frees_its_blocks(up: Up, client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.generate("Once upon a time", max_tokens=LONG, ignore_eos=True, timeout_s=0.5)
    wait_until(lambda: idle(up), "the late request ends")


def test_a_full_queue_answers_with_a_hint_before_any_token_and_deadlines_pass_in_it(tmp_path: Path) -> None:
    document = manifest(workers={"replicas": 1, "maxNumSeqs": 1, "maxQueuedRequests": 1})
    no_retry = RetryPolicy(max_attempts=1)
    with shoal_up(tmp_path, document) as up, Client(up.endpoint, timeout_s=60, retry=no_retry) as client:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(client.stream("One", max_tokens=LONG, ignore_eos=True))
            next(first)
            with pytest.raises(DeadlineExceeded):  # in the queue
                client.generate("Late", max_tokens=1, timeout_s=0.3)
            wait_until(
                lambda: up.sum_metric("shoal_worker_num_requests_waiting") == 0, "the late request leaves the queue"
            )
            waiting = threading.Thread(target=lambda: client.generate("Two", max_tokens=1))
            waiting.start()
            wait_until(lambda: up.sum_metric("shoal_worker_num_requests_waiting") == 1, "the second request waits")
            with pytest.raises(ResourceExhausted) as caught:
                client.generate("Three", max_tokens=1)
            assert caught.value.retry_after_s is not None
            refused = httpx.post(
                f"http://{up.endpoint}/v1/completions", json={"model": MODEL, "prompt": "x"}, trust_env=False
            )
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        waiting.join(30)
        assert not waiting.is_alive()
        assert up.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_under_load_loses_no_stream_and_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    with shoal_up(tmp_path, manifest()) as up:
        family = psutil.Process(up.process.pid).children(recursive=True)
        port = int(up.endpoint.rpartition(":")[2])
        num_streams = 6
        started = threading.Barrier(num_streams + 1, timeout=60)

        def run(index: int) -> int:
            options: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "output": "token_ids"}
            with Client(up.endpoint, timeout_s=120) as client, client.stream(f"Story {index}:", **options) as stream:
                count = len(next(stream).token_ids)
                started.wait()
                return count + sum(len(chunk.token_ids) for chunk in stream)

        with ThreadPoolExecutor(num_streams) as pool:
            running = [pool.submit(run, index) for index in range(num_streams)]
            started.wait()
            assert up.stop(signum) == 0
            assert [future.result(10) for future in running] == [150] * num_streams
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert list(up.runtime_dir.iterdir()) == []
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
