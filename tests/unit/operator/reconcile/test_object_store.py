"""What the operator knows of the cluster, in whatever order it was told."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from shoal.operator.planner.kubernetes import FIELD_MANAGER, MANAGED_BY, OWNER_LABEL
from shoal.operator.reconcile.object_store import ObjectStore, owner_key

KEY = ("n", "smol")


def found(name: str = "x", version: int = 1, uid: str = "u", labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    ours = {OWNER_LABEL: "smol", MANAGED_BY: FIELD_MANAGER}
    metadata = {
        "name": name,
        "namespace": "n",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {**ours, **(labels or {})},
    }
    return {"kind": "Service", "metadata": metadata}


def test_only_the_operators_own_are_kept() -> None:
    store = ObjectStore()
    stranger = found(labels={MANAGED_BY: "helm"})
    assert owner_key(stranger) is None
    assert store.put(stranger) is None
    assert store.put({"kind": "Service", "metadata": {"name": "x", "namespace": "n"}}) is None
    assert store.put(found()) == KEY
    assert len(store.of(KEY)) == 1


def test_the_newest_stays_in_whatever_order_versions_come() -> None:
    """Answers to our own writes and watches are two streams."""
    for order in itertools.permutations(range(1, 4)):
        store = ObjectStore()
        for version in order:
            store.put(found(version=version))
        known = store.get(KEY, "Service", "x")
        assert known is not None
        assert known["metadata"]["resourceVersion"] == "3"


def test_a_late_deletion_does_not_take_what_was_made_anew() -> None:
    store = ObjectStore()
    store.put(found(version=5, uid="new"))
    store.remove(found(version=3, uid="old"))
    assert store.get(KEY, "Service", "x") is not None
    store.remove(found(version=6, uid="new"))
    assert store.of(KEY) == []


def test_a_list_finds_what_a_watch_missed() -> None:
    store = ObjectStore()
    for name in ("a", "b"):
        store.put(found(name, uid=name))
    other = {**found("c", uid="c"), "kind": "Secret"}
    store.put(other)
    listed = [found("b", uid="b")]
    assert [lost["metadata"]["name"] for lost in store.missing("Service", None, listed, 1)] == ["a"]
    assert store.missing("Service", "elsewhere", listed, 1) == []


def test_what_came_after_a_list_is_not_missing_from_it() -> None:
    store = ObjectStore()
    store.put(found("a", version=5, uid="a"))
    assert store.missing("Service", None, [], 4) == []
    assert len(store.missing("Service", None, [], 5)) == 1


def test_what_went_is_not_brought_back_by_older_news() -> None:
    store = ObjectStore()
    store.put(found(version=1))
    assert store.remove(found(version=4)) == KEY
    assert store.put(found(version=3)) is None
    assert store.of(KEY) == []
    assert store.put(found(version=5, uid="another")) == KEY
