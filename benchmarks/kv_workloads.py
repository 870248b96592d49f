"""Prompts as lists of block numbers, for caches of prefixes: made-up ones, each of which some policy is bad at."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from types import MappingProxyType

Workload = list[list[int]]
"""For each request the ids of its blocks; equal ids have equal prefixes."""


def _chain(number: int, length: int = 4) -> list[int]:
    return [number * 1000 + position for position in range(length)]


def _popular(rng: random.Random, num: int, exponent: float) -> Callable[[], int]:
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(num)))
    return lambda: rng.choices(range(num), cum_weights=weights)[0]


def zipf(exponent: float) -> Workload:
    """Independent draws of prompts."""
    draw = _popular(random.Random(1), 6000, exponent)
    return [_chain(draw()) for _ in range(8000)]


def loop(num: int) -> Workload:
    """Prompts in turn: LRU gives up each just before it comes again."""
    return [_chain(i % num) for i in range(8000)]


def scans() -> Workload:
    """Popular prompts, and in every third thousand requests nothing but prompts that never come again."""
    draw = _popular(random.Random(2), 2000, 0.9)
    return [_chain(10**6 + i if i // 1000 % 3 == 2 else draw()) for i in range(12_000)]


def hot_prefixes() -> Workload:
    """40 system prompts of 16 blocks, each time with 8 blocks that never come again."""
    draw = _popular(random.Random(3), 40, 1.0)
    return [_chain(draw(), 16) + [10**8 + i * 8 + j for j in range(8)] for i in range(6000)]


def sessions(num_turns: float, num_open: int) -> Workload:
    """Conversations that grow by 4 blocks a turn, with a thinking time of random length between turns."""
    rng, prompts, num_blocks = random.Random(4), Workload(), itertools.count()
    turns: list[tuple[float, int, list[int]]] = [(rng.random(), number, []) for number in range(num_open)]
    heapq.heapify(turns)
    for number in range(num_open, num_open + 9000):
        now_s, _, blocks = heapq.heappop(turns)
        blocks = blocks + [next(num_blocks) for _ in range(4 if blocks else 8)]
        prompts.append(blocks)
        goes_on = rng.random() < 1 - 1 / num_turns
        heapq.heappush(turns, (now_s + rng.lognormvariate(0, 1), number, blocks if goes_on else []))
    return prompts


def shifts() -> Workload:
    """Popular prompts, and other ones after every 2,000 requests."""
    draw = _popular(random.Random(5), 1500, 1.0)
    return [_chain(draw() + i // 2000 * 10_000) for i in range(12_000)]


def uniform() -> Workload:
    """Nothing to learn."""
    rng = random.Random(6)
    return [_chain(rng.randrange(1500)) for _ in range(10_000)]


def recent() -> Workload:
    """What LRU is made for: the more recent a prompt, the likelier it comes again."""
    rng, stack, prompts = random.Random(7), list[int](), Workload()
    for number in range(12_000):
        back = int(rng.expovariate(1 / 150)) + 1
        known = stack and rng.random() < 0.7
        stack.append(stack.pop(-min(back, len(stack))) if known else number)
        prompts.append(_chain(stack[-1]))
    return prompts


def phases() -> Workload:
    """`recent`, a loop, and other recent ones: what was learned is wrong twice."""
    first = recent()[:5000]
    middle = [[block + 10**11 for block in prompt] for prompt in loop(700)[:5000]]
    return first + middle + [[block + 10**12 for block in prompt] for prompt in first]


WORKLOADS = MappingProxyType(
    {
        "zipf 0.7": lambda: zipf(0.7),
        "zipf 1.0": lambda: zipf(1.0),
        "zipf 1.2": lambda: zipf(1.2),
        "loop of 600": lambda: loop(600),
        "loop of 1500": lambda: loop(1500),
        "scans": scans,
        "hot prefixes": hot_prefixes,
        "sessions, 60 of 4 turns": lambda: sessions(4, 60),
        "sessions, 60 of 12 turns": lambda: sessions(12, 60),
        "sessions, 400 of 5 turns": lambda: sessions(5, 400),
        "shifts": shifts,
        "uniform": uniform,
        "recent": recent,
        "phases": phases,
    }
)
