"""The program of a render process: reads jobs from standard input, writes results to standard output.

A template is code from the model's author, run on data from anybody. It may loop forever or ask for all memory; so the
kernel limits this process: an interval timer ends it when a render takes too long (even inside C code, and even when
the service is gone), RLIMIT_AS bounds its memory, and it can neither write files nor start programs that could.
"""

from __future__ import annotations

import gc
import resource
import signal
import sys
from typing import BinaryIO, Final

import jinja2
import msgspec

from shoal.tokenizer.render_protocol import RenderJob, RenderResult, Setup, body_length, pack
from shoal.tokenizer.templates import OutputTooLong, TemplateFailed, compile_template, render, render_continued

MIN_COMPILE_TIMEOUT_S: Final = 5.0
_COLLECT_EVERY_JOBS: Final = 64


def main() -> None:
    """Serves jobs until standard input ends."""
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service decides when to end
    header = _read_exactly(incoming, 4)
    if header is None:
        return
    setup = msgspec.msgpack.decode(_read_exactly(incoming, body_length(header)) or b"", type=Setup)
    _limit(setup)
    signal.setitimer(signal.ITIMER_REAL, max(setup.timeout_s, MIN_COMPILE_TIMEOUT_S))
    try:  # under the limits too: Jinja evaluates constant expressions while it compiles
        templates = {name: compile_template(source) for name, source in setup.templates.items()}
    except (TemplateFailed, MemoryError) as error:
        _write(outgoing, RenderResult("template_failed", str(error) or type(error).__name__))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    _write(outgoing, RenderResult("text", ""))
    gc.freeze()
    gc.disable()  # a collection in the middle of a render is half of its latency
    decoder = msgspec.msgpack.Decoder(RenderJob)
    num_jobs = 0
    while (header := _read_exactly(incoming, 4)) is not None:
        body = _read_exactly(incoming, body_length(header))
        if body is None:
            return
        signal.setitimer(signal.ITIMER_REAL, setup.timeout_s)
        result = _run(decoder.decode(body), templates, setup)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(outgoing, result)
        num_jobs += 1
        if num_jobs % _COLLECT_EVERY_JOBS == 0:
            gc.collect()


def _run(job: RenderJob, templates: dict[str, jinja2.Template], setup: Setup) -> RenderResult:
    variables = {
        **setup.named_tokens,
        **job.variables,
        "messages": job.messages,
        "tools": job.tools,
        "documents": job.variables.get("documents"),
        "add_generation_prompt": not job.continue_final_message,
    }
    template = templates[job.template]
    try:
        if job.continue_final_message:
            return RenderResult("text", render_continued(template, variables, setup.max_chars))
        return RenderResult("text", render(template, variables, setup.max_chars))
    except TemplateFailed as error:
        return RenderResult("template_failed", str(error))
    except OutputTooLong:
        return RenderResult("too_long", "")
    except MemoryError:
        return RenderResult("no_memory", "")


def _limit(setup: Setup) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, whatever it is doing
    for kind, limit in (
        (resource.RLIMIT_AS, setup.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if sys.platform == "linux":  # elsewhere RLIMIT_AS may not exist; the timer still ends the process
                raise


def _read_exactly(stream: BinaryIO, num_bytes: int) -> bytes | None:
    """`num_bytes` bytes, or None when the service is gone."""
    data = stream.read(num_bytes)
    return data if len(data) == num_bytes else None


def _write(stream: BinaryIO, result: RenderResult) -> None:
    stream.write(pack(result))
    stream.flush()


if __name__ == "__main__":
    main()
