"""Memory for blocks: chunks of shared memory, each of one tenant, cut into slots of one size.

A chunk is a sealed memfd: it cannot shrink or grow, so no reader of it can fault, and nobody but this process can map
it for writing. Readers get a chunk's descriptor; no chunk holds blocks of two tenants, not even one after the other.
"""

from shoal.kv_store.arena.arena import Arena as Arena
from shoal.kv_store.arena.arena import Pool as Pool
from shoal.kv_store.arena.arena import SlotId as SlotId
from shoal.kv_store.arena.chunk import Chunk as Chunk
from shoal.kv_store.arena.huge_pages import Granted as Granted
from shoal.kv_store.arena.huge_pages import HugePagesMissing as HugePagesMissing
from shoal.kv_store.arena.huge_pages import grant_huge_pages as grant_huge_pages
from shoal.kv_store.arena.memory import HugePages as HugePages
from shoal.kv_store.arena.staging import Staging as Staging
