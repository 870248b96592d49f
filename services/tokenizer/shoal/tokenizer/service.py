"""Builds the service from its settings and takes it down again."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from shoal.artifacts import LogProgress, resolve
from shoal.tokenizer.config import TokenizerConfig
from shoal.tokenizer.definition import DEFAULT_TEMPLATE, TokenizerDefinition
from shoal.tokenizer.encoding import TokenizerThreads
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.loading import load_definition
from shoal.tokenizer.rendering import Renderer, RenderLimits
from shoal.tokenizer.servicer import TextLimits, TokenizerServicer
from shoal.tokenizer.vocabulary import Vocabulary, build_vocabulary

_log = structlog.get_logger("shoal.tokenizer")


def load(config: TokenizerConfig) -> tuple[TokenizerDefinition, Vocabulary]:
    """Fetches and checks the tokenizer. Blocks. Raises ArtifactError or TokenizerError when it cannot be served."""
    path = resolve(config.model, offline=config.offline, contents="tokenizer", progress=LogProgress(config.model))
    definition = load_definition(path)
    if config.chat_template:
        template = read_template(Path(config.chat_template), config.max_template_bytes)
        definition = dataclasses.replace(definition, chat_templates={DEFAULT_TEMPLATE: template})
    for name, template in definition.chat_templates.items():
        if len(template.encode()) > config.max_template_bytes:
            raise TokenizerError(
                f"{path}: the chat template {name!r} has {len(template.encode())} bytes, "
                f"more than max_template_bytes = {config.max_template_bytes}"
            )
    vocabulary = build_vocabulary(definition.tokenizer)
    _log.info("tokenizer loaded", path=str(path), vocab_size=len(vocabulary.pieces))
    return definition, vocabulary


def read_template(path: Path, max_bytes: int) -> str:
    """The user's own chat template. Raises TokenizerError when it cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise TokenizerError(f"chat_template {path}: more than max_template_bytes = {max_bytes}")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"chat_template {path}: {error}") from error


@asynccontextmanager
async def open_servicer(
    config: TokenizerConfig, definition: TokenizerDefinition, vocabulary: Vocabulary
) -> AsyncIterator[TokenizerServicer]:
    """A servicer that is ready to serve. Raises TokenizerError when a chat template does not compile."""
    threads = TokenizerThreads(definition.tokenizer, config.encode_threads, config.max_pending)
    renderer = await _start_renderer(definition, config)
    limits = TextLimits(config.max_text_bytes, config.max_batch_size)
    try:
        yield TokenizerServicer(definition, vocabulary, threads, renderer, limits)
    finally:
        if renderer is not None:
            await renderer.stop()
        threads.stop()


async def _start_renderer(definition: TokenizerDefinition, config: TokenizerConfig) -> Renderer | None:
    if not definition.chat_templates:
        _log.info("the model has no chat template; RenderChat is off")
        return None
    limits = RenderLimits(
        timeout_s=config.render_timeout_s,
        memory_bytes=config.render_memory_mib << 20,
        max_chars=config.max_text_bytes,
        num_processes=config.render_processes,
        max_pending=config.max_pending,
    )
    return await Renderer.start(definition.chat_templates, definition.named_tokens, limits)
