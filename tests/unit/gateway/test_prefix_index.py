"""PrefixIndex against a plain model: a set of keys a worker."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.routing.prefix_index import PrefixIndex

WORKERS = ["a", "b", "c"]
KEYS = [bytes([i]) * 16 for i in range(12)]
workers = st.sampled_from(WORKERS)
some_keys = st.lists(st.sampled_from(KEYS), max_size=6)
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["store", "remove"]), workers, some_keys),
        st.tuples(st.sampled_from(["clear", "drop"]), workers, st.just([])),
        st.tuples(st.just("match"), st.just(""), some_keys),
    ),
    max_size=40,
)


def apply(index: PrefixIndex, name: str, worker: str, keys: list[bytes]) -> None:
    if name in ("store", "remove"):
        getattr(index, name)(worker, keys)
    elif name != "match":
        getattr(index, name)(worker)


def depth(held: set[bytes], keys: list[bytes]) -> int:
    return next((i for i, key in enumerate(keys) if key not in held), len(keys))


@settings(deadline=None)
@given(operations)
def test_it_answers_like_a_set_for_each_worker(steps: list[tuple[str, str, list[bytes]]]) -> None:
    index = PrefixIndex(max_keys=1000)
    model: dict[str, set[bytes]] = {}
    for name, worker, keys in steps:
        apply(index, name, worker, keys)
        if name == "store":
            model.setdefault(worker, set()).update(keys)
        elif name == "remove" and worker in model:
            model[worker].difference_update(keys)
        elif name == "clear":
            model[worker] = set()
        elif name == "drop":
            model.pop(worker, None)
        else:
            expected = {w: depth(held, keys) for w, held in model.items()}
            assert index.match(keys) == {w: d for w, d in expected.items() if d}
        assert index.workers == set(model)
        assert {w: index.num_keys(w) for w in model} == {w: len(held) for w, held in model.items()}
        assert len(index) == len(set().union(*model.values()))


@settings(deadline=None)
@given(operations, st.integers(1, 5))
def test_a_full_index_never_claims_what_no_worker_said(
    steps: list[tuple[str, str, list[bytes]]], max_keys: int
) -> None:
    index = PrefixIndex(max_keys)
    model: dict[str, set[bytes]] = {}
    for name, worker, keys in steps:
        apply(index, name, worker, keys)
        if name == "store":
            model.setdefault(worker, set()).update(keys)
        elif name == "remove" and worker in model:
            model[worker].difference_update(keys)
        elif name in ("clear", "drop"):
            model[worker] = set()
        else:
            for found, blocks in index.match(keys).items():
                assert set(keys[:blocks]) <= model[found]
        assert len(index) <= max_keys
        assert sum(index.num_keys(w) for w in WORKERS) >= len(index)


def test_a_chain_too_long_for_the_index_keeps_its_start() -> None:
    index = PrefixIndex(max_keys=3)
    index.store("a", KEYS[:6])
    assert index.match(KEYS[:6]) == {"a": 3}


def test_what_was_matched_lately_outlives_what_was_not() -> None:
    index = PrefixIndex(max_keys=4)
    index.store("a", KEYS[:2])
    index.store("a", KEYS[2:4])
    index.match(KEYS[:2])
    index.store("a", KEYS[4:6])
    assert index.match(KEYS[:2]) == {"a": 2}
    assert index.match(KEYS[2:4]) == {}


def test_keys_are_read_no_further_than_anybody_matches() -> None:
    index = PrefixIndex(max_keys=100)
    index.store("a", KEYS[:2])
    keys = iter(KEYS)
    index.match(keys)
    assert next(keys) == KEYS[3]
