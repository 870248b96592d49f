"""A store in memory against a dictionary: it may forget, it may not be wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from shoal.kv_store.policy import POLICIES
from support.store_model import StoreModel


class MemoryStoreModel(StoreModel):
    @initialize(
        num_chunks=st.integers(1, 5), quota=st.sampled_from([3, 100, 100]), policy=st.sampled_from(sorted(POLICIES))
    )
    def begin(self, num_chunks: int, quota: int, policy: str) -> None:
        self.start(num_chunks, quota, policy)


MemoryStoreModel.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestStoreModel: Any = MemoryStoreModel.TestCase
