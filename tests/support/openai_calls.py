"""Calls the OpenAI HTTP API of a RunningGateway and reads its answers."""

from __future__ import annotations

import json
from typing import Any

import httpx

from support.gateway_running import RunningGateway

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


async def chat(running: RunningGateway, **fields: Any) -> httpx.Response:
    """A chat completion of MESSAGES, unless `fields` say otherwise."""
    return await running.http.post(CHAT, json={"messages": MESSAGES} | fields)


def events(response: httpx.Response) -> list[Any]:
    """The data of each server-sent event; the end as a string."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    lines = [part.removeprefix("data: ") for part in parts]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
