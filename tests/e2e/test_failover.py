"""A worker of a real mesh is killed under streams of a real model: the SDK and the HTTP client see nothing of it."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from shoal.client import Client
from support.eventually import wait_until
from support.shoal_up import MODEL, Up

PROMPTS = ("The mountain was", "A ship sailed to", "In the beginning")
NUM_TOKENS = 120


def test_a_killed_worker_loses_no_stream_and_comes_back(up: Up, client: Client, http: httpx.Client) -> None:
    wait_until(lambda: client.models()[0].ready_workers == 2, "both workers are known", 60)
    started = threading.Barrier(len(PROMPTS) + 2, timeout=60)

    def stream(prompt: str) -> tuple[int, str]:
        options: dict[str, Any] = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 4}
        with client.stream(prompt, **options) as chunks:
            next(chunks)
            started.wait()
            for _ in chunks:
                pass
            completion = chunks.completion()
            return completion.usage.completion_tokens, completion.text

    def ask() -> tuple[int, str]:
        body = {"model": MODEL, "prompt": "Far away", "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
        started.wait()
        answer = http.post("/v1/completions", json=body).raise_for_status().json()
        return answer["usage"]["completion_tokens"], answer["choices"][0]["text"]

    with ThreadPoolExecutor(len(PROMPTS) + 1) as pool:
        running = [pool.submit(stream, prompt) for prompt in PROMPTS] + [pool.submit(ask)]
        started.wait()
        victim = up.components("shoal.model_worker.main")[0]
        victim.send_signal(signal.SIGKILL)
        answers = [future.result(120) for future in running]
    assert [num_tokens for num_tokens, _ in answers] == [NUM_TOKENS] * len(answers)
    assert all(text for _, text in answers)
    wait_until(lambda: client.models()[0].ready_workers == 2, "the worker is restarted and known again", 60)
    assert victim.pid not in {worker.pid for worker in up.components("shoal.model_worker.main")}
