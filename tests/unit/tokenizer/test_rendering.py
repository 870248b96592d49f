"""The pool of render processes: fast for good templates, unharmed by bad ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.rpc.errors import InvalidArgument, PayloadTooLarge, ResourceExhausted
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.render_protocol import RenderJob
from shoal.tokenizer.rendering import Renderer, RenderLimits

TEMPLATES = {
    "echo": "{{ bos_token }}{{ messages[0].content }}",
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless in C": "{% set n = messages|length + 8 %}{{ n ** (n ** n) }}",
    "memory": "{{ messages[0].content * 1000000000 }}",
    "memory in steps": (
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    ),
    "long": "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    "refusal": "{{ raise_exception('no system messages') }}",
    "environment": "{{ messages[0].content }}",
}


def job(template: str, content: str = "hello", **variables: Any) -> RenderJob:
    return RenderJob(template, [{"role": "user", "content": content}], None, variables, False)


@asynccontextmanager
async def renderer(
    *, timeout_s: float = 0.5, num_processes: int = 1, max_pending: int = 400
) -> AsyncIterator[Renderer]:
    limits = RenderLimits(timeout_s, 256 << 20, 10_000, num_processes, max_pending)
    pool = await Renderer.start(TEMPLATES, {"bos_token": "<s>"}, limits)
    try:
        yield pool
    finally:
        await pool.stop()


async def test_renders_many_in_order() -> None:
    async with renderer(num_processes=2) as pool:
        texts = await asyncio.gather(*(pool.render(job("echo", str(i))) for i in range(300)))
    assert texts == [f"<s>{i}" for i in range(300)]


@pytest.mark.parametrize("name", ["endless", "endless in C"])
async def test_a_runaway_template_is_stopped_and_the_next_render_works(name: str) -> None:
    async with renderer() as pool:
        async with asyncio.timeout(20):
            with pytest.raises(ResourceExhausted, match=r"took longer than 0\.5 s"):
                await pool.render(job(name))
            while True:  # the replacement is on its way
                try:
                    assert await pool.render(job("echo")) == "<s>hello"
                    break
                except ResourceExhausted:
                    continue


@pytest.mark.parametrize("name", ["memory", "memory in steps"])
async def test_a_template_cannot_take_all_memory(name: str) -> None:
    async with renderer(timeout_s=5) as pool:
        with pytest.raises(ResourceExhausted, match="bytes of memory"):
            await pool.render(job(name))
        assert await pool.render(job("echo")) == "<s>hello"


async def test_other_limits_and_refusals_are_named() -> None:
    async with renderer() as pool:
        with pytest.raises(PayloadTooLarge, match="longer than the 10000 characters"):
            await pool.render(job("long"))
        with pytest.raises(InvalidArgument, match="refuses it: no system messages"):
            await pool.render(job("refusal"))
        assert await pool.render(job("echo", bos_token="")) == "hello"


async def test_a_template_that_does_not_compile_is_found_at_start() -> None:
    with pytest.raises(TokenizerError, match="does not compile: line 1"):
        await Renderer.start({"default": "{% if %}"}, {}, RenderLimits(1, 256 << 20, 100, 2, 10))


async def start_and_render(source: str) -> None:
    pool = await Renderer.start({"default": source}, {}, RenderLimits(0.5, 256 << 20, 100, 1, 10))
    try:
        await pool.render(job("default"))
    finally:
        await pool.stop()


@pytest.mark.parametrize("source", ["{{ 9 ** (9 ** 9) }}", "{{ 'x' * 4000000000 }}"])
async def test_constants_are_folded_under_the_limits(source: str) -> None:
    async with asyncio.timeout(20):
        with pytest.raises((TokenizerError, ResourceExhausted)):
            await start_and_render(source)


async def test_full_means_refused() -> None:
    async with renderer(max_pending=3) as pool:
        first = asyncio.create_task(pool.render(job("endless")))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(pool.render(job("echo"))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="3 chats are waiting"):
            await pool.render(job("echo"))
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert isinstance(results[0], ResourceExhausted)


async def test_a_cancelled_render_does_not_answer_somebody_else() -> None:
    async with renderer(timeout_s=5) as pool:
        for i in range(50):
            cancelled = asyncio.create_task(pool.render(job("echo", f"cancelled {i}")))
            await asyncio.sleep(0)
            cancelled.cancel()
            assert await pool.render(job("echo", f"kept {i}")) == f"<s>kept {i}"


async def test_processes_do_not_inherit_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    async with renderer() as pool:
        (process,) = pool._processes
        proc = Path(f"/proc/{process._process.pid}")
        environment = (proc / "environ").read_bytes()
        assert b"PATH=" in environment
        assert b"HF_TOKEN" not in environment
        assert str(256 << 20) in (proc / "limits").read_text()


async def test_stop_leaves_no_process_behind() -> None:
    async with renderer(num_processes=2) as pool:
        pids = [process._process.pid for process in pool._processes]
        busy = asyncio.create_task(pool.render(job("endless")))
        await asyncio.sleep(0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises((asyncio.CancelledError, ResourceExhausted)):
        await busy
