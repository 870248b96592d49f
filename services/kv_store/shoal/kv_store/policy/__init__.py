"""Which blocks a tier takes, and which it gives up.

Pure: no I/O, no clock, no threads. `make_policy` gives one of `POLICIES`; `adaptive` is the default.
"""

from __future__ import annotations

from shoal.kv_store.policy.policies import DEFAULT_POLICY as DEFAULT_POLICY
from shoal.kv_store.policy.policies import POLICIES as POLICIES
from shoal.kv_store.policy.policies import make_policy as make_policy
from shoal.kv_store.policy.policy import IsEvictable as IsEvictable
from shoal.kv_store.policy.policy import Policy as Policy
