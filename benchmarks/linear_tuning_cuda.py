"""The sweep over kernels and tiles of products, for each weight of the models and each range of rows."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpu_timing import Call, compile_all, copies_beyond_cache, graph_us
from model_shapes import Weight, load_shapes
from operations_cuda import peers_of, randn
from shoal.kernels.linear import triton_impl
from shoal.kernels.linear.tuning import LinearTuning, num_counters

SHARED_BYTES = 227 * 1024
"""Of a multiprocessor of an H100, for all its programs."""
MAX_SPLITS = 8
ROWS = (1, 16, 32, 64, 128, 256)
NEAR = 1.03
"""A candidate that takes so much of the fastest one's time is as good: each build costs every start its compilation."""
ERROR = 2**-7
"""Relative, of the whole result: bfloat16 rounds each value by half of that."""

Tile = tuple[int, int, int, int]
"""(tile_out, tile_in, num_stages, num_warps)."""

VECTORS = ((2, 2048), (1, 2048), (4, 1024), (2, 1024), (4, 512), (8, 512), (16, 256), (2, 512))
"""(tile_out, tile_in); with 4 and 8 warps."""
FEW_ROWS: tuple[Tile, ...] = (
    (64, 256, 4, 4), (64, 128, 6, 4), (32, 256, 4, 4), (32, 256, 4, 2), (16, 256, 6, 2), (16, 512, 4, 2),
)  # fmt: skip
TILES: dict[int, dict[int, tuple[Tile, ...]]] = {
    16: {16: ((64, 256, 4, 4), (64, 128, 6, 4), (128, 128, 4, 4))},
    32: {32: ((64, 256, 4, 4), (64, 128, 6, 4), (128, 128, 4, 4))},
    64: {
        64: (
            (64, 128, 3, 4), (64, 128, 4, 4), (64, 256, 3, 4), (64, 64, 6, 4),
            (128, 128, 4, 4), (128, 128, 4, 8), (128, 64, 4, 4), (128, 64, 6, 4),
        ),
    },
    128: {
        128: (
            (64, 64, 4, 4), (64, 128, 4, 4), (128, 64, 3, 4), (128, 64, 3, 8), (128, 64, 6, 8), (128, 128, 3, 4),
            (128, 128, 3, 8),
        ),
        64: ((128, 64, 4, 4), (128, 128, 4, 8)),
    },
    256: {
        128: ((128, 64, 3, 8), (128, 64, 4, 8), (128, 64, 6, 8)),
        256: ((64, 64, 4, 8), (128, 64, 4, 8)),
    },
}  # fmt: skip
"""By max_rows and tile_rows. Two programs to a processor, or one with all its memory."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The products of one weight, with copies of it that do not fit in the cache together."""

    weight: Weight
    copies: list[Tensor]
    x: Tensor
    """[256, in]."""

    @classmethod
    def make(cls, weight: Weight) -> Problem:
        """Random."""
        count = copies_beyond_cache(weight.num_bytes)
        sizes = (weight.out_features, weight.in_features)
        return cls(weight, [randn(*sizes, scale=0.02) for _ in range(count)], randn(ROWS[-1], weight.in_features))

    def calls(self, tuning: LinearTuning, rows: int) -> list[Call]:
        """Ours, of each copy."""
        count = num_counters((tuning,), self.weight.out_features)
        counters = torch.zeros(count, dtype=torch.int32, device="cuda")
        x = self.x[:rows]

        def call(data: Tensor) -> Call:
            return lambda: triton_impl.linear(x, data, None, tuning, counters, out_float32=self.weight.is_logits)

        return [call(data) for data in self.copies] * max(1, 8 // len(self.copies))

    def torch_us(self, rows: int) -> float:
        """What `linear` does without ours."""
        peer = peers_of(self.weight)[0]
        return graph_us([peer(self.x[:rows], data) for data in self.copies] * max(1, 8 // len(self.copies)))

    def error(self, tuning: LinearTuning, rows: int) -> float:
        """Of a result, relative to float32's."""
        expected = self.x[:rows].float() @ self.copies[0].float().T
        actual = self.calls(tuning, rows)[0]()
        assert isinstance(actual, Tensor)
        return float((actual.float() - expected).norm() / expected.norm())


@dataclass(frozen=True, slots=True)
class Range:
    """What is good for one weight and up to max_rows rows."""

    weight: Weight
    max_rows: int
    times: dict[LinearTuning, float]
    """Microseconds of those nearly as fast as the fastest; empty where torch is faster."""


def tune_linear(deadline_s: float) -> list[LinearTuning]:
    """Entries for each weight, fewer rows first; weights that there is no time for are left out."""
    weights = {(x.out_features, x.in_features): x for shape in load_shapes() for x in shape.weights}
    _compile(list(weights.values()))
    ranges: list[Range] = []
    for weight in weights.values():
        if time.perf_counter() > deadline_s:
            print(f"  out of time at {weight.out_features}x{weight.in_features}", file=sys.stderr, flush=True)
            break
        problem = Problem.make(weight)
        ranges += [_measure(problem, rows) for rows in ROWS]
        del problem
        torch.cuda.empty_cache()
    return choose_entries(ranges)


def choose_entries(ranges: Sequence[Range]) -> list[LinearTuning]:
    """One entry for each, from as few different builds as cover all: the one that is good for most, and so on."""
    chosen: dict[int, LinearTuning] = {
        i: LinearTuning("bfloat16", each.weight.out_features, each.weight.in_features, each.max_rows, "torch")
        for i, each in enumerate(ranges)
        if not each.times
    }
    while len(chosen) < len(ranges):
        served: dict[object, dict[int, LinearTuning]] = {}
        for i, each in enumerate(ranges):
            if i not in chosen:
                for tuning in sorted(each.times, key=lambda tuning: each.times[tuning]):
                    served.setdefault((each.weight.is_logits, build_of(tuning)), {}).setdefault(i, tuning)
        most = max(served.values(), key=len)
        chosen.update(most)
    return [chosen[i] for i in range(len(ranges))]


def build_of(tuning: LinearTuning) -> LinearTuning:
    """Equal for what is compiled once."""
    return replace(tuning, out_features=None, in_features=None, max_rows=1, splits=min(tuning.splits, 2))


def candidates(weight: Weight, max_rows: int, num_processors: int) -> list[LinearTuning]:
    """What may be fast for so many rows."""
    common = LinearTuning("bfloat16", weight.out_features, weight.in_features, max_rows, "tiles")
    if max_rows == 1:
        width = 1 << (weight.in_features - 1).bit_length()
        return [
            replace(common, kernel="vector", tile_out=tile_out, tile_in=tile_in, num_warps=num_warps)
            for (tile_out, tile_in), num_warps in itertools.product(VECTORS, (4, 8))
            if tile_in <= width
        ]
    found = []
    if max_rows <= 32:
        found += [_with_tile(replace(common, kernel="rows", tile_rows=max_rows), tile) for tile in FEW_ROWS]
    for tile_rows, tiles in TILES[max_rows].items():
        for tile in tiles:
            tiled = _with_tile(replace(common, tile_rows=tile_rows), tile)
            found += [replace(tiled, splits=splits) for splits in _splits(tiled, num_processors)]
    return found


def _with_tile(tuning: LinearTuning, tile: Tile) -> LinearTuning:
    tile_out, tile_in, num_stages, num_warps = tile
    return replace(tuning, tile_out=tile_out, tile_in=tile_in, num_stages=num_stages, num_warps=num_warps)


def _splits(tuning: LinearTuning, num_processors: int) -> list[int]:
    """None, and as many as fill the processors once, or once with every program that fits on them."""
    assert tuning.out_features is not None
    assert tuning.in_features is not None
    num_tiles = -(-tuning.out_features // tuning.tile_out) * -(-tuning.max_rows // tuning.tile_rows)
    stage_bytes = 2 * tuning.tile_in * (tuning.tile_out + tuning.tile_rows)
    programs = max(1, SHARED_BYTES // (stage_bytes * tuning.num_stages + 1024))
    most = max(1, min(MAX_SPLITS, tuning.in_features // (2 * tuning.tile_in)))
    wanted = (num_processors // num_tiles, min(programs, 4) * num_processors // num_tiles)
    return sorted({1, *(max(1, min(most, splits)) for splits in wanted)})


def _compile(weights: Sequence[Weight]) -> None:
    """Every candidate's kernel, many at a time. What does not compile fails again where it is measured."""
    builds: dict[object, Call] = {}
    for is_logits, is_even in itertools.product((False, True), (False, True)):
        out_features, in_features = (1024, 2048) if is_even else (1000, 2048 - 64)
        sample = Problem(
            Weight("sample", out_features, in_features, is_logits),
            [randn(out_features, in_features)],
            randn(ROWS[-1], in_features),
        )
        for weight, rows in itertools.product(weights, ROWS if is_even else (1,)):
            if weight.is_logits == is_logits:
                for each in candidates(weight, rows, _num_processors()):
                    builds.setdefault((is_logits, is_even, build_of(each)), sample.calls(each, rows)[0])
    start_s = time.perf_counter()
    compile_all(list(builds.values()))
    print(f"  {len(builds)} kernels compiled in {time.perf_counter() - start_s:.0f} s", file=sys.stderr, flush=True)


def _measure(problem: Problem, max_rows: int) -> Range:
    """Torch is faster if it is at max_rows and at 3/4 of it together."""
    times = _good(problem, max_rows)
    if not times:
        return Range(problem.weight, max_rows, {})
    best = min(times, key=lambda tuning: times[tuning])
    counts = sorted({max_rows, max(1, max_rows * 3 // 4)})
    ours = [graph_us(problem.calls(best, rows)) for rows in counts]
    theirs = [problem.torch_us(rows) for rows in counts]
    is_ours = sum(ours) <= sum(theirs)
    out_features, in_features = problem.weight.out_features, problem.weight.in_features
    gb_per_s = [problem.weight.num_bytes / us / 1e3 for us in (ours[-1], theirs[-1])]
    print(
        f"  {out_features:6}x{in_features:<6} {max_rows:3} rows: {'ours ' if is_ours else 'TORCH'} {ours[-1]:7.2f} us "
        f"({gb_per_s[0]:5.0f} GB/s), torch {theirs[-1]:7.2f} ({gb_per_s[1]:5.0f}); {_describe(best)}, "
        f"{len(times)} near",
        file=sys.stderr,
        flush=True,
    )
    return Range(problem.weight, max_rows, times if is_ours else {})


def _good(problem: Problem, max_rows: int) -> dict[LinearTuning, float]:
    """The nearly fastest whose results are right. RuntimeError if no candidate runs: then something else is wrong."""
    times: dict[LinearTuning, float] = {}
    for each in candidates(problem.weight, max_rows, _num_processors()):
        try:
            times[each] = graph_us(problem.calls(each, max_rows), 5)
        except Exception as failure:  # does not compile or does not fit
            print(f"    {_describe(each)}: {str(failure)[:100]!r}", file=sys.stderr, flush=True)
    if not times:
        raise RuntimeError(f"no kernel for {max_rows} rows of {problem.weight} runs")
    good: dict[LinearTuning, float] = {}
    for tuning in sorted(times, key=lambda tuning: times[tuning]):
        if good and times[tuning] > NEAR * min(good.values()):
            break
        error = problem.error(tuning, max_rows)
        if error < ERROR:
            good[tuning] = times[tuning]
        else:
            print(f"    WRONG by {error:.3f}: {_describe(tuning)}", file=sys.stderr, flush=True)
    return good


def _describe(tuning: LinearTuning) -> str:
    tile = f"{tuning.tile_out}x{tuning.tile_in}x{tuning.tile_rows}"
    return f"{tuning.kernel} {tile}, {tuning.splits} splits, {tuning.num_stages} stages, {tuning.num_warps} warps"


def _num_processors() -> int:
    return torch.cuda.get_device_properties("cuda").multi_processor_count
