"""Adapters on disk: versions by digest, which never change, and names that point to them.

versions/DIGEST/{adapter_config.json, adapter_model.safetensors, record.json}
names/HASH.json
incoming/                   on its way in, or out; emptied at every start
lock                        held by the one process that may write here
"""

from shoal.lora_registry.store.adapter_store import AdapterStore, Published, StoreLimits
from shoal.lora_registry.store.disk import Disk
from shoal.lora_registry.store.records import FILES, NameRecord, VersionRecord

__all__ = ["AdapterStore", "Disk", "FILES", "NameRecord", "Published", "StoreLimits", "VersionRecord"]
