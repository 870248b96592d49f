"""Chat templates render as transformers renders them, and reach nothing outside of their sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.tokenizer.templates import OutputTooLong, TemplateFailed, compile_template, render, render_continued
from support.chat_templates import CONVERSATIONS, TEMPLATES, TOOL

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}


def render_with_transformers(template: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template([messages], chat_template=template, **NAMED, **arguments)
    return str(texts[0])


def variables(messages: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    return {**NAMED, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **extra}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
def test_renders_equal_those_of_transformers(name: str, index: int) -> None:
    template, messages = TEMPLATES[name], CONVERSATIONS[index]
    compiled = compile_template(template)
    for extra in ({}, {"tools": [TOOL]}, {"enable_thinking": True}):
        got = render(compiled, variables(messages, **extra), 1 << 20)
        assert got == render_with_transformers(template, messages, add_generation_prompt=True, **extra)


@pytest.mark.parametrize("name", ["chatml", "trimming", "tools", "generation"])
@pytest.mark.parametrize("index", range(len(CONVERSATIONS)))
def test_continued_messages_end_as_in_transformers(name: str, index: int) -> None:
    template, messages = TEMPLATES[name], CONVERSATIONS[index]
    got = render_continued(compile_template(template), variables(messages, add_generation_prompt=False), 1 << 20)
    assert got == render_with_transformers(template, messages, continue_final_message=True)


def test_a_dropped_message_cannot_be_continued() -> None:
    compiled = compile_template("{{ messages[0].content }}")
    with pytest.raises(TemplateFailed, match="leaves out the last message"):
        render_continued(compiled, variables(CONVERSATIONS[2]), 1 << 20)


def test_the_date_can_be_asked_for() -> None:
    text = render(compile_template("{{ strftime_now('%Y') }}"), {}, 100)
    assert text.isdigit()
    assert len(text) == 4


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "^Roles must alternate$"),
        ("{% for %}", "line 1: "),
        ("{{ messages.missing.more }}", "undefined|no attribute"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ undefined_function() }}", "undefined"),
        ("{% include 'x' %}", "no loader|TypeError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_failures_are_the_templates_and_say_why(source: str, named: str) -> None:
    with pytest.raises(TemplateFailed, match=named):
        render(compile_template(source), variables(CONVERSATIONS[0]), 1 << 20)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__code__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ dict.mro() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ '%s' | attr('format') }}{{ '{0.__class__}'.format(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ ((1).__class__.__base__.__subclasses__)() }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    try:
        text = render(compile_template(source), variables(messages), 1 << 20)
    except TemplateFailed:
        text = ""
    assert "<class" not in text
    assert "module" not in text
    assert "<code" not in text
    assert "uid=" not in text
    assert messages == [{"role": "user", "content": "x"}]


def test_output_is_bounded_while_it_grows() -> None:
    produced = 0

    def count(value: str) -> str:
        nonlocal produced
        produced += 1
        return value

    compiled = compile_template("{% for i in range(1000) %}{{ count('0123456789') }}{% endfor %}")
    with pytest.raises(OutputTooLong):
        render(compiled, {"count": count}, 100)
    assert produced < 20
    assert len(render(compiled, {"count": count}, 10_000)) == 10_000
