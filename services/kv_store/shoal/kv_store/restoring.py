"""Shows what a log has on disk, when a store starts."""

from __future__ import annotations

from shoal.kv_store.demoting import ROOT_PARENT
from shoal.kv_store.disk import RecordMetadata, SegmentLog
from shoal.kv_store.index import BlockIndex
from shoal.kv_store.index.block_index import ROOT
from shoal.kv_store.scopes import Scopes
from shoal.rpc.errors import ShoalError


def restore_blocks(log: SegmentLog, index: BlockIndex, scopes: Scopes) -> None:
    """Adds the blocks whose parents are there too to an index, and drops the others from the log.

    In a log most parents come before their children. 2 us a block, half of them for the log's own replay.
    """
    restoration = _Restoration(log, index, scopes)
    waiting: dict[bytes, list[RecordMetadata]] = {}
    row, last_key = ROOT, ROOT_PARENT  # a block mostly follows the one that was written before it
    for metadata, _ in log.replay():
        parent_key = metadata.parent
        parent = row if parent_key == last_key else ROOT if parent_key == ROOT_PARENT else index.find(parent_key)
        if not parent and parent_key != ROOT_PARENT:
            waiting.setdefault(parent_key, []).append(metadata)
            continue
        row, last_key = restoration.show(metadata, parent), metadata.key
        if waiting and metadata.key in waiting:
            found = [(row, each) for each in waiting.pop(metadata.key)]
            for before, each in found:
                shown = restoration.show(each, before) if before else 0
                if not before:
                    log.remove(each.key)
                found += [(shown, follower) for follower in waiting.pop(each.key, ())]
    for orphans in waiting.values():
        for metadata in orphans:
            log.remove(metadata.key)


class _Restoration:
    """Numbers of scopes are remembered: a log has few, and many blocks of each."""

    def __init__(self, log: SegmentLog, index: BlockIndex, scopes: Scopes) -> None:
        self._log = log
        self._index = index
        self._scopes = scopes
        self._numbers: dict[tuple[str, bytes, int], int] = {}

    def show(self, metadata: RecordMetadata, parent: int) -> int:
        """The block's row; 0 when it cannot be shown, and is dropped."""
        key, _, fingerprint, tenant, payload_bytes = metadata
        number = self._numbers.get((tenant, fingerprint, payload_bytes))
        if number is None:
            number = self._numbers[tenant, fingerprint, payload_bytes] = self._open(metadata)
        index = self._index
        if not number or (parent and index.scope[parent] != number) or index.find(key):
            self._log.remove(key)
            return 0
        row = index.add(key, parent, number, 0)
        index.set_on_disk(row, True)
        return row

    def _open(self, metadata: RecordMetadata) -> int:
        """0 for a scope that this store cannot have: its blocks are larger than a chunk, for example."""
        try:
            return self._scopes.open(metadata.tenant, metadata.fingerprint, metadata.payload_bytes).number
        except ShoalError:
            return 0
