"""Chat templates: Jinja in a sandbox, with what the models' templates expect around it.

Runs inside a render process (`render_process`), never in the service: the sandbox keeps a template from touching
Python, and the process's limits keep it from running or growing without end.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Final

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

CONTINUATION_MARK: Final = "SHOAL_CONTINUES_HERE "
"""Appended to the last message to find where its text ends in the rendered prompt."""


class TemplateFailed(Exception):
    """The template is broken, or refuses the conversation; the message is the template's."""


class OutputTooLong(Exception):
    """The rendered text is longer than allowed."""


def compile_template(source: str) -> jinja2.Template:
    """Raises TemplateFailed naming the line when `source` is not a template."""
    try:
        return _make_environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateFailed(_describe(error)) from error


def render(template: jinja2.Template, variables: Mapping[str, Any], max_chars: int) -> str:
    """The rendered text. Raises TemplateFailed or OutputTooLong."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            length += len(piece)
            if length > max_chars:
                raise OutputTooLong
            pieces.append(piece)
    except OutputTooLong:
        raise
    except MemoryError:
        raise
    except Exception as error:  # templates run arbitrary expressions: any exception is theirs
        raise TemplateFailed(_describe(error)) from error
    return "".join(pieces)


def render_continued(template: jinja2.Template, variables: Mapping[str, Any], max_chars: int) -> str:
    """The rendered text up to the end of the last message, so that the model goes on with it.

    `variables["messages"]` has a last message with `content`; it is not changed.
    """
    *before, last = variables["messages"]
    content = str(last["content"])
    marked = {**last, "content": content + CONTINUATION_MARK}
    text = render(template, {**variables, "messages": [*before, marked]}, max_chars + len(CONTINUATION_MARK))
    end = text.rfind(CONTINUATION_MARK.strip())
    if end < 0 or content.strip() not in text:
        raise TemplateFailed("the template leaves out the last message, so it cannot be continued")
    # A template that trims messages has eaten the mark's space, and then the message's own trailing spaces too.
    return text[:end] if text.startswith(CONTINUATION_MARK, end) else text[:end].rstrip()


def _describe(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    text = str(error) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return (f"line {line}: " if line is not None else "") + text[:2000]


def _make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _make_dict
    environment.globals["namespace"] = _Namespace
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant wrote, for training; it renders as its body."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body itself."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"names that begin with _ are not for templates: {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` without the class's attributes."""
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escapes: the model shall see `<`, not `\\u003c`."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
