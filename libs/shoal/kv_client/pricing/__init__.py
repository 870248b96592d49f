"""Whether a request loads the blocks that a store has, or computes them, so that no store makes it slow."""

from __future__ import annotations

from shoal.kv_client.pricing.price import Action as Action
from shoal.kv_client.pricing.price import ComputeTime as ComputeTime
from shoal.kv_client.pricing.price import Decision as Decision
from shoal.kv_client.pricing.price import Offer as Offer
from shoal.kv_client.pricing.price import price as price
from shoal.kv_client.pricing.price import price_lookup as price_lookup
from shoal.kv_client.pricing.pricer import Pending as Pending
from shoal.kv_client.pricing.pricer import Pricer as Pricer
from shoal.kv_client.pricing.pricer import prefill_time as prefill_time
from shoal.kv_client.pricing.tier_speed import TierSpeed as TierSpeed
