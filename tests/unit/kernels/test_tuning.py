"""Documents of tuned constants, and which of their entries is taken."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from shoal.kernels.linear import tuning as linear_tuning
from shoal.kernels.linear.tuning import LinearTuning, num_counters
from shoal.kernels.paged_attention import tuning as attention_tuning
from shoal.kernels.paged_attention.tuning import AttentionTuning
from shoal.kernels.sampling import tuning as sampling_tuning
from shoal.kernels.sampling.tuning import SamplingTuning
from shoal.kernels.tuning import DEFAULT, document_name, gpu_of, load_entries, parse_document

ENTRY_TYPES = {"linear": LinearTuning, "paged_attention": AttentionTuning, "sampling": SamplingTuning}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Entry:
    width: int
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("width must not be negative")


def parse(entries: Any, **other: Any) -> list[Entry]:
    document = {"gpu": None, "source": "a test", "entries": entries} | other
    return parse_document(json.dumps(document), "op/configs/default.json", DEFAULT, Entry)


def shipped() -> list[tuple[str, str]]:
    """(operation, document)."""
    files = (
        (op, file.name)
        for op in ENTRY_TYPES
        for file in (importlib.resources.files(f"shoal.kernels.{op}") / "configs").iterdir()
    )
    return sorted((op, name.removesuffix(".json")) for op, name in files)


@pytest.mark.parametrize(("op", "name"), shipped(), ids=str)
def test_every_shipped_document_loads(op: str, name: str) -> None:
    assert load_entries(op, name, ENTRY_TYPES[op])  # which checks that the GPU it names is the one of its file


@pytest.mark.parametrize("op", ENTRY_TYPES)
def test_every_operation_has_a_default(op: str) -> None:
    assert (op, DEFAULT) in shipped()
    assert load_entries(op, "another_gpu", ENTRY_TYPES[op]) == load_entries(op, DEFAULT, ENTRY_TYPES[op])


def test_the_gpu_s_own_entries_come_first() -> None:
    own = load_entries("linear", "nvidia_h100_80gb_hbm3", LinearTuning)
    default = load_entries("linear", DEFAULT, LinearTuning)
    assert own[-len(default) :] == default
    assert len(own) > len(default)


def test_documents_are_named_after_gpus() -> None:
    assert document_name("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"
    assert document_name("NVIDIA A10G (MIG 1g.5gb)") == "nvidia_a10g_mig_1g_5gb"
    assert gpu_of(CPU) == DEFAULT


def test_a_document_is_parsed() -> None:
    assert parse([{"width": 3}, {"width": 4, "dtype": "float32"}]) == [Entry(3), Entry(4, "float32")]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "entries a list"),
        ([{"width": 1, "height": 2}], r"default.json: entries\[0\]: unknown height; known are dtype, width"),
        ([{"width": 1}, {"dtype": "float32"}], r"entries\[1\]: width missing"),
        ([{"width": "1"}], r"entries\[0\].width must be int, not '1'"),
        ([{"width": True}], r"entries\[0\].width must be int, not True"),
        ([{"width": 1, "dtype": 16}], r"entries\[0\].dtype must be str or null, not 16"),
        ([{"width": -1}], r"entries\[0\]: width must not be negative"),
        (["tile"], r"entries\[0\] must be an object"),
    ],
)
def test_wrong_entries_are_refused_by_name(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(entries)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"comment": "?"}, "unknown comment"),
        ({"gpu": 5}, "gpu must be a string or null"),
        ({"gpu": "NVIDIA H100"}, "belongs to another file than default.json"),
        ({"source": None}, "source must be a string"),
    ],
)
def test_wrong_documents_are_refused_by_name(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse([], **other)


def test_damaged_json_is_refused() -> None:
    with pytest.raises(ValueError, match=r"op/configs/default\.json: not JSON"):
        parse_document("{", "op/configs/default.json", DEFAULT, Entry)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": "cublas"}, "kernel must be one of vector, rows, tiles, torch"),
        ({"kernel": "rows", "max_rows": 17}, "max_rows must be at most 16"),
        ({"kernel": "vector", "max_rows": 2}, "max_rows must be at most 1"),
        ({"kernel": "tiles", "max_rows": 257}, "max_rows must be at most 256"),
        ({"kernel": "tiles", "tile_out": 48}, "tile_out must be a power of two, not 48"),
        ({"kernel": "rows", "splits": 2}, "splits must be 1"),
        ({"kernel": "tiles", "splits": 0}, "splits must be at least 1"),
        ({"kernel": "tiles", "out_features": 64}, "null both or neither"),
    ],
)
def test_wrong_linear_tunings_are_refused(fields: dict[str, Any], message: str) -> None:
    required: dict[str, Any] = {"dtype": None, "out_features": None, "in_features": None, "max_rows": 1}
    with pytest.raises(ValueError, match=message):
        LinearTuning(**required | fields)


def linear_entries(monkeypatch: pytest.MonkeyPatch, *entries: LinearTuning) -> None:
    monkeypatch.setattr(linear_tuning, "load_entries", lambda op, gpu, entry_type: entries)
    linear_tuning.entries_for.cache_clear()


def test_products_take_the_entry_of_the_nearest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (
        LinearTuning("bfloat16", *size, max_rows=32, kernel="tiles", tile_out=tile_out)
        for size, tile_out in (((1024, 512), 16), ((8192, 4096), 128))
    )
    anything = LinearTuning(None, None, None, max_rows=32, kernel="tiles", tile_out=64)
    linear_entries(monkeypatch, small, large, anything)
    try:
        for size, expected in (((1024, 512), small), ((1000, 600), small), ((4096, 4096), large)):
            assert linear_tuning.choose(CPU, torch.bfloat16, *size, rows=32) == expected
        assert linear_tuning.choose(CPU, torch.float32, 1024, 512, rows=1) == anything, "of another dtype"
        assert linear_tuning.choose(CPU, torch.bfloat16, 1024, 512, rows=33).kernel == "torch"
    finally:
        linear_tuning.entries_for.cache_clear()


def test_products_take_the_first_entry_for_enough_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    few, left, many = (
        LinearTuning(None, None, None, rows, kernel) for rows, kernel in ((16, "rows"), (64, "torch"), (128, "tiles"))
    )
    linear_entries(monkeypatch, few, left, many)
    try:
        for rows, expected in ((1, few), (16, few), (17, left), (64, left), (65, many), (128, many)):
            assert linear_tuning.choose(CPU, torch.float32, 64, 64, rows) == expected
    finally:
        linear_tuning.entries_for.cache_clear()


def test_counters_are_enough_for_every_entry_that_splits() -> None:
    whole, split, taller = (
        LinearTuning(None, None, None, rows, "tiles", tile_out=tile_out, tile_rows=tile_rows, splits=splits)
        for rows, tile_out, tile_rows, splits in ((16, 1, 16, 1), (64, 64, 64, 2), (256, 128, 64, 3))
    )
    assert num_counters((whole,), 1000) == 0
    assert num_counters((whole, split), 1000) == 16
    assert num_counters((whole, split, taller), 1000) == 32


@pytest.mark.parametrize("gpu", [name for op, name in shipped() if op == "paged_attention"])
@pytest.mark.parametrize("head_dim", [16, 64, 128, 192, 256])
@pytest.mark.parametrize("group", [1, 4, 32, 64])
def test_every_model_has_attention(group: int, head_dim: int, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tuning, "gpu_of", lambda device: gpu)
    chosen = attention_tuning.choose.__wrapped__(CPU, torch.bfloat16, group, head_dim)
    # Accumulators of 128 x 256 over 4 warps would spill (sm_90).
    assert chosen.tall_num_warps * 32 * 128 >= chosen.tall_rows * head_dim


def test_every_vocabulary_has_sampling() -> None:
    assert all(sampling_tuning.choose(CPU, vocab_size).chunk for vocab_size in (2, 49152, 300_000))
