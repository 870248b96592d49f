"""The same-host client of the KV store: blocks by key, through shared memory.

    client = KvClient(KvClientOptions(socket_path=..., tenant=..., fingerprint=..., block_bytes=...))
    num = client.get(keys, buffers)          # leading blocks that were there and verified
    client.put(keys, payloads, parent_key=..., namespace_key=...)
    with client.view(keys) as lease:         # no copy: memory of the store, for reading
        for block in lease.blocks: ...

A store that is away, dies, hangs or answers nonsense is a miss, within `timeout_s`: no call of a client raises for it.
`client.problem` says what is wrong, `client.counters` how often.
"""

from shoal.kv_client.answers import Located as Located
from shoal.kv_client.answers import Prefix as Prefix
from shoal.kv_client.client import KvClient as KvClient
from shoal.kv_client.lease import Lease as Lease
from shoal.kv_client.options import KvClientOptions as KvClientOptions
from shoal.kv_client.writes import PutResult as PutResult
from shoal.kv_client.writes import Reserved as Reserved
