"""Who is connected, and how far it is."""

from __future__ import annotations

from shoal.operator.xds import SnapshotStore

SMOL = "models/smol"


def test_envoys_count_as_done_once_they_have_accepted_everything_and_followers_never() -> None:
    changed: list[str] = []
    store = SnapshotStore(changed.append)
    store.joined(SMOL, "a/follower", is_envoy=False)
    assert store.envoys(SMOL) == (0, 0)
    store.joined(SMOL, "a")
    store.joined(SMOL, "b")
    assert store.envoys(SMOL) == (2, 2)
    changed.clear()
    store.settled(SMOL, "a")
    store.settled(SMOL, "a")
    assert (store.envoys(SMOL), changed) == ((2, 1), [SMOL])
    # A new connection, before the old one is known to be gone.
    store.joined(SMOL, "a")
    store.left(SMOL, "a")
    assert store.envoys(SMOL) == (2, 1)
    store.left(SMOL, "b")
    store.left(SMOL, "a/follower")
    assert store.envoys(SMOL) == (1, 0)
    store.left(SMOL, "a")
    assert (store.envoys(SMOL), store.clusters) == ((0, 0), ())
