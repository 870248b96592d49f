"""Every policy against a model of what it holds: size, membership, chains, pins."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.kv_store.policy import POLICIES, Policy
from shoal.kv_store.policy.python_adaptive import PythonAdaptive

CAPACITY = 12
KEYS = [bytes([number]) * 16 for number in range(24)]
KEY = st.sampled_from(KEYS)
MAKERS = {**POLICIES, "adaptive in Python": PythonAdaptive}


class PolicyMachine(RuleBasedStateMachine):
    """A tier of 12 blocks that asks for a victim when it is full, as the store does."""

    def __init__(self) -> None:
        super().__init__()
        self.policy: Policy
        self.parents: dict[bytes, bytes | None] = {}
        self.pinned: set[bytes] = set()
        self.now_s = 0

    @initialize(name=st.sampled_from(sorted(MAKERS)))
    def start(self, name: str) -> None:
        self.policy = MAKERS[name](CAPACITY)

    def is_leaf(self, key: bytes) -> bool:
        return key not in self.parents.values()

    def make_room(self, keep: bytes | None) -> bool:
        if len(self.parents) < CAPACITY:
            return True
        allowed = {key for key in self.parents if key not in self.pinned and key != keep}
        victim = self.policy.victim(lambda key: key in allowed)
        if victim is None:
            assert not any(self.is_leaf(key) for key in allowed)
            return False
        assert victim in allowed
        assert self.is_leaf(victim)
        del self.parents[victim]
        return True

    @rule(key=KEY, parent=st.none() | KEY, size=st.integers(1, 4), cost=st.sampled_from([0.0, 0.5, 2.0]))
    def insert(self, key: bytes, parent: bytes | None, size: int, cost: float) -> None:
        if key in self.parents:
            self.policy.insert(key, size, cost, parent)  # is ignored
            return
        parent = parent if parent in self.parents else None
        if self.policy.admit(key, size, cost) and self.make_room(parent):
            self.policy.insert(key, size, cost, parent)
            self.parents[key] = parent

    @rule(keys=st.lists(KEY, max_size=6))
    def touch(self, keys: list[bytes]) -> None:
        self.policy.touch_all(keys)

    @rule(key=KEY)
    def pin_or_unpin(self, key: bytes) -> None:
        self.pinned ^= {key}

    @rule(key=KEY)
    def remove(self, key: bytes) -> None:
        self.policy.remove(key)
        if key in self.parents:
            del self.parents[key]
            for child, parent in self.parents.items():
                if parent == key:
                    self.parents[child] = None

    @precondition(lambda self: self.parents)
    @rule()
    def empty(self) -> None:
        self.pinned.clear()
        while self.parents:
            victim = self.policy.victim(lambda _: True)
            assert victim is not None
            assert self.is_leaf(victim)
            del self.parents[victim]
        assert self.policy.victim(lambda _: True) is None

    @invariant()
    def membership_equals_the_model(self) -> None:
        if hasattr(self, "policy"):
            assert len(self.policy) == len(self.parents) <= CAPACITY
            assert {key for key in KEYS if key in self.policy} == set(self.parents)


PolicyMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPolicies = PolicyMachine.TestCase
