"""The SSD tier: a log of segments that holds KV blocks by key.

    log = SegmentLog("/var/lib/shoal/kv", capacity_bytes=200 << 30, retention=policy)
    for metadata, location in log.replay(): ...
    location = log.write(Record(RecordMetadata(key, parent, fingerprint, tenant, len(payload)), payload)).result()
    crc = log.read(location, into).result()

What it promises:

- **Never a wrong byte.** Each record carries CRC32C of its header and payload, its key, parent, fingerprint, tenant,
  its place, and the nonce of its segment's present use. `read` succeeds only if all of them are right; otherwise the
  block is dropped, counted and reported.
- **kill -9**: a block whose write's future is done is there after a restart. **Power cut**: what was written before the
  last checkpoint that succeeded (one is due every 30 s or GiB) is there; of what came later, whole records that reached
  the device are. Recovery verifies everything newer than the checkpoint; torn records are counted and not shown.
- **Bounded disk.** Segments, both checkpoints and the rest never take more than the capacity, after crashes as well:
  files are preallocated and used again, leftovers are found by name when the log is opened. Files of other names are
  not touched.
- **Nothing hangs.** Every I/O has a deadline. A thread inside a call that does not return is written off, at most
  four at once; what it holds (its buffer, its segment) is not used again until it returns. Memory of callers is
  touched only until their future is done.
- **A bad disk costs hits, not requests.** Three failures or stalls within 30 s take reads or writes out of service
  (a read-only file system the writes, at once); probes after 1 s to a minute bring them back. A full file system means
  fewer segments. A busy disk admits fewer chains.

Space is reclaimed by whole segments. `Retention`, given by the owner, prices blocks; a block that costs more to lose
than to move is moved, at most half a segment at a time, all others are dropped.

Locks: everything but I/O happens under one lock, for microseconds; callbacks come without it.
"""

from __future__ import annotations

from shoal.kv_store.disk.codec import ShuffledZstd as ShuffledZstd
from shoal.kv_store.disk.errors import Corrupt as Corrupt
from shoal.kv_store.disk.errors import DiskError as DiskError
from shoal.kv_store.disk.errors import Expired as Expired
from shoal.kv_store.disk.errors import Gone as Gone
from shoal.kv_store.disk.errors import IoFailed as IoFailed
from shoal.kv_store.disk.errors import NotAdmitted as NotAdmitted
from shoal.kv_store.disk.errors import OutOfService as OutOfService
from shoal.kv_store.disk.errors import Stalled as Stalled
from shoal.kv_store.disk.layout import RecordMetadata as RecordMetadata
from shoal.kv_store.disk.log import Location as Location
from shoal.kv_store.disk.log import SegmentLog as SegmentLog
from shoal.kv_store.disk.reclaim import Retention as Retention
from shoal.kv_store.disk.sizing import LogOptions as LogOptions
from shoal.kv_store.disk.stats import DiskStats as DiskStats
from shoal.kv_store.disk.transfer import Record as Record
