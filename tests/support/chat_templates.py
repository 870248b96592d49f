"""Chat templates in the styles that models use, and conversations to render with them."""

from __future__ import annotations

from typing import Any, Final

TEMPLATES: Final = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}"
        "{{'<|im_end|>\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "trimming": (
        "{{ bos_token }}{% for m in messages %}[{{ m.role|upper }}] {{ m.content | trim }} [/{{ m.role }}]\n"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    ),
    "blocks and loop controls": """
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {%- if loop.index0 > 6 %}{% break %}{% endif %}
    {{- loop.index }}: {{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}assistant: {% endif %}""",
    "tools": (
        "{% for tool in tools or [] %}{{ tool | tojson }}|{{ tool | tojson(indent=2) }}\n{% endfor %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
        "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
        "{% endfor %}{% endif %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}\n{% endfor %}"
    ),
    "namespace, macros and filters": (
        "{% set ns = namespace(n=0, roles=[]) %}"
        "{% macro show(m) %}({{ m['role'][:1] }}:{{ m['content']|length }}){% endmacro %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ show(m) }}{% endfor %}"
        "{{ ns.n }} {{ messages|map(attribute='role')|list|tojson }} {{ messages[-1].content.split()|join('_') }} "
        "{{ 'thinking' if enable_thinking is defined and enable_thinking else 'plain' }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ dict(a=1).items() | list }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>{% endgeneration %}"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    ),
    "html": "{% for m in messages %}{{ {'c': m.content} | tojson }}{{ m.content | e }}{% endfor %}",
}

TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <of> a city & more",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"minimum": 1}}},
    },
}
CALL: Final[dict[str, Any]] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "exact": 0.5}},
}

CONVERSATIONS: Final[tuple[list[dict[str, Any]], ...]] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be  brief. "}, {"role": "user", "content": "  <b>Hi</b> & 'bye' \"x\"\n"}],
    [
        {"role": "user", "content": "日本語 😀\n\n"},
        {"role": "assistant", "content": "Ça va {{ 7 * 7 }} {% raw %}"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": " I was saying  "},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 20}', "tool_call_id": "call_1", "name": "get_weather"},
        {"role": "assistant", "content": "20 degrees"},
    ],
    [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i}"} for i in range(12)],
)
