"""Thirty real prompts, 10 to about 1,500 tokens, for tests that compare whole outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_QUESTIONS = (
    "Why is the sea salty?",
    "Write a haiku about autumn rain.",
    "Explain photosynthesis to a ten-year-old in three sentences.",
    "What is the difference between a list and a tuple in Python? Give an example of each.",
    "Translate to French: 'The library opens at nine and closes at six.'",
    "Name five rivers in Europe and the countries they flow through.",
    "My train leaves at 14:35 and the trip takes 2 hours and 50 minutes. When do I arrive?",
    "¿Cuál es la capital de Perú y por qué es famosa?",
    "请用一句话介绍长城。",
    "Summarise the plot of Romeo and Juliet without naming anyone.",
    "Give me a recipe for pancakes 🥞 with exact quantities.",
    "ما هي عاصمة مصر؟",
)
_BEGINNINGS = (
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "The three most important things to know about gravity are",
    "def fibonacci(n):\n    '''Returns the n-th Fibonacci number.'''\n",
    "SELECT customers.name, SUM(orders.total) AS revenue FROM customers",
    "In 1969, the crew of Apollo 11",
    "Dear hiring manager,\n\nI am writing to apply for the position of",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    '{"name": "Ada", "born": 1815, "field": "mathematics"}\n{"name": "Alan", "born":',
    "Ingredients:\n- 2 eggs\n- 200 g flour\n- 1 pinch of salt\n\nMethod:\n1.",
    "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer",
)
_LICENSE_CHARS = (500, 1_200, 2_000, 3_200, 4_500, 5_500, 6_400, 7_700)
"""Lengths of excerpts of the licence, about 4.7 characters a token: up to about 1,500 tokens."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat turn to be rendered with the model's template, or plain text to continue."""

    text: str
    chat: bool


def real_prompts() -> list[Prompt]:
    """The thirty prompts; the same on every machine."""
    licence = (ROOT / "LICENSE").read_text()
    excerpts = [" ".join(licence[:chars].split(" ")) for chars in _LICENSE_CHARS]
    return [
        *(Prompt(text, chat=True) for text in _QUESTIONS),
        *(Prompt(text, chat=False) for text in _BEGINNINGS),
        *(Prompt(f"Summarise this text:\n\n{text}", chat=True) for text in excerpts[:4]),
        *(Prompt(text, chat=False) for text in excerpts[4:]),
    ]
