"""Sweeps of the constants that `shoal.kernels.tuning` reads, on this GPU, for the models in `models/`."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
import triton

from attention_cuda import Cache
from gpu_timing import compile_all, graph_us
from model_shapes import load_shapes
from sampling_cuda import KINDS, make_call, make_logits
from shoal.kernels.paged_attention import gpu_plan
from shoal.kernels.paged_attention import tuning as attention_tuning
from shoal.kernels.paged_attention.tuning import AttentionTuning
from shoal.kernels.sampling import triton_impl as sampling_impl
from shoal.kernels.sampling import tuning as sampling_tuning
from shoal.kernels.sampling.tuning import SamplingTuning
from shoal.kernels.tuning import document_name

GAIN = 0.98
"""Constants are changed only if times become so much of what they were: less is noise."""

ATTENTION_FIELDS: dict[str, tuple[int, ...]] = {
    "low_num_warps": (2, 4),
    "low_num_stages": (2, 3, 4, 5),
    "low_programs_per_processor": (1, 2, 3, 4),
    "tall_num_stages": (2, 3),
    "tall_num_warps": (4, 8),
    "tall_rows": (64, 128),
    "tall_programs_per_processor": (1, 2),
    "tall_min_pages": (2, 4, 8, 16),
}
ATTENTION_STEPS = (
    *((1, 1, 1024), (32, 1, 512), (128, 1, 1024), (8, 1, 8192), (1, 1, 32768)),
    *((1, 2048, 2048), (8, 1024, 1024), (1, 64, 8256), (1, 512, 8704)),
)
"""(sequences, query tokens of each, tokens with KV of each)."""
SAMPLING_FIELDS: dict[str, tuple[int, ...]] = {
    "chunk": (2048, 4096, 8192),
    "read_num_warps": (2, 4, 8),
    "choose_num_warps": (8, 16, 32),
    "filter_width": (1024, 2048, 4096),
}

Tuning = TypeVar("Tuning", AttentionTuning, SamplingTuning)


def write_document(folder: Path, op: str, entries: Sequence[Any], note: str) -> Path:
    """Replaces the operation's document for this GPU below `folder` (the package's `shoal/kernels`)."""
    gpu = torch.cuda.get_device_name()
    path = folder / op / "configs" / f"{document_name(gpu)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    source = f"kernels_cuda.py --tune on {date} with torch {torch.__version__} and triton {triton.__version__}. {note}"
    lines = ",\n".join(f"    {json.dumps(_given(entry))}" for entry in entries)
    head = f'{{\n  "gpu": {json.dumps(gpu)},\n  "source": {json.dumps(source)},\n  "entries": [\n'
    path.write_text(f"{head}{lines}\n  ]\n}}\n")
    return path


def _given(entry: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    pairs = ((field, getattr(entry, field.name)) for field in dataclasses.fields(entry))
    return {field.name: value for field, value in pairs if field.default != value}


def tune_attention(deadline_s: float) -> list[AttentionTuning]:
    """An entry for each head dim of the models, and groups of up to 32; `default.json` has the rest."""
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for shape in load_shapes():
        groups.setdefault(shape.head_dim, []).append((shape.num_heads, shape.num_kv_heads, shape.head_dim))
    entries = []
    for head_dim, heads in sorted(groups.items()):
        caches = [Cache(2048 if head_dim > 64 else 4096, *each) for each in heads]
        group = max(num_heads // num_kv_heads for num_heads, num_kv_heads, _ in heads)
        device = torch.device("cuda")
        tuned = attention_tuning.choose(device, torch.bfloat16, group, head_dim)
        times = functools.partial(_attention_times, caches=caches)
        tuned = _descend(tuned, ATTENTION_FIELDS, times, deadline_s, f"attention, head dim {head_dim}")
        entries.append(dataclasses.replace(tuned, max_head_dim=head_dim, max_group=32))
        del caches, times
        torch.cuda.empty_cache()
    return entries


def _attention_times(candidate: AttentionTuning, *, caches: Sequence[Cache]) -> list[float]:
    # For plans, which say how kernels are built.
    with mock.patch.object(gpu_plan, "_tuning", return_value=candidate):
        calls = [
            cache.call([(queries, length)] * count, decodes=queries == 1)
            for cache in caches
            for count, queries, length in ATTENTION_STEPS
        ]
    raise_first(compile_all(calls))
    return [graph_us([call] * 4, 5) for call in calls]


def tune_sampling(deadline_s: float) -> list[SamplingTuning]:
    """One entry for any vocabulary, so that a slot's tokens are the same whatever the vocabulary is padded to."""
    shapes = [(rows, 128_256) for rows in (1, 32, 256)]
    logits = [make_logits(rows, vocab_size, kind) for rows, vocab_size in shapes for kind in KINDS]
    kinds = [kind for _ in shapes for kind in KINDS]

    def times(candidate: SamplingTuning) -> list[float]:
        with mock.patch.object(sampling_impl, "choose", return_value=candidate):
            calls = [make_call(each, kind, candidate.chunk) for each, kind in zip(logits, kinds, strict=True)]
            raise_first(compile_all(calls))
            return [graph_us([call] * 4, 5) for call in calls]

    tuned = sampling_tuning.choose(torch.device("cuda"), 128_256)
    return [_descend(tuned, SAMPLING_FIELDS, times, deadline_s, "sampling")]


def _descend(
    tuning: Tuning,
    fields: dict[str, tuple[int, ...]],
    measure: Callable[[Tuning], list[float]],
    deadline_s: float,
    name: str,
) -> Tuning:
    """Changes one field after another, keeping what makes the times shorter in the geometric mean."""
    best = measure(tuning)
    for field, value in ((field, value) for field, values in fields.items() for value in values):
        if time.perf_counter() > deadline_s:
            print(f"  {name}: out of time", file=sys.stderr, flush=True)
            break
        if getattr(tuning, field) == value:
            continue
        try:
            candidate = dataclasses.replace(tuning, **{field: value})  # type: ignore[arg-type]
            times = measure(candidate)
        except Exception as error:  # does not compile or does not fit: as bad as slow
            print(f"  {name} {field} {value}: {_first_line(error)}", file=sys.stderr, flush=True)
            continue
        ratio = statistics.geometric_mean(new / old for new, old in zip(times, best, strict=True))
        print(f"  {name} {field} {value}: {ratio:.3f} of the time", file=sys.stderr, flush=True)
        if ratio < GAIN:
            tuning, best = candidate, times
    return tuning


def raise_first(errors: Iterable[Exception | None]) -> None:
    """The first error, if there is one."""
    for error in errors:
        if error is not None:
            raise error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]
