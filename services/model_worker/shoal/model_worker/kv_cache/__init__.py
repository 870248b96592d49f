"""Who owns which KV block. No torch: property-tested on any machine."""

from shoal.model_worker.kv_cache.events import Cleared, KvEvent, Removed, Stored
from shoal.model_worker.kv_cache.manager import BlockTable, Extension, KVCacheManager

__all__ = ["BlockTable", "Cleared", "Extension", "KVCacheManager", "KvEvent", "Removed", "Stored"]
