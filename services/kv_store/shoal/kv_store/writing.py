"""From a client's staging memory to a visible block: reserve, copy and verify, publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import KEY_BYTES
from shoal.checksum import copy_crc32c_at
from shoal.kv_store.counters import Counters
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.events import MEMORY, EventHub, Stored
from shoal.kv_store.index import BlockIndex
from shoal.kv_store.index.block_index import ROOT
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.sessions import Reservation, Session

Status: TypeAlias = pb.BlockStatus.ValueType


@dataclass(slots=True)
class CopyJob:
    """One batch to copy from staging to the arena. `run` touches nothing else, so it may run in any thread."""

    session: Session
    reservations: list[Reservation | None]
    """None for a key that is not reserved."""
    checksums: Sequence[int]
    moves: list[tuple[int, int]]
    """(to, from) of each reservation that is there."""
    num_bytes: int
    copied: list[int]
    """Checksums of what was copied; filled by `run`."""

    def run(self) -> None:
        """Copies every payload and sums what arrived: the client may write on, what is in the arena stays."""
        self.copied.extend(copy_crc32c_at(to, source, self.num_bytes) for to, source in self.moves)


class Writing:
    """Reservations of all sessions. A key is written by one session at a time. Belongs to the store's thread."""

    def __init__(
        self,
        memory: MemoryTier,
        index: BlockIndex,
        events: EventHub,
        counters: Counters,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """timeout_s: a reservation that is not committed within it ends."""
        self._memory = memory
        self._index = index
        self._events = events
        self._counters = counters
        self._timeout_s = timeout_s
        self._clock = clock
        self._pending: dict[bytes, Reservation] = {}
        self.on_stored: Callable[[Session, Sequence[bytes]], None] = lambda session, keys: None
        """Told of blocks that became visible."""
        self._disk: DiskTier | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def attach_disk(self, disk: DiskTier) -> None:
        """What is published is offered to the disk from here on."""
        self._disk = disk

    def reserve(
        self, session: Session, keys: Sequence[bytes], parent_key: bytes, namespace_key: bytes, cost_s: float
    ) -> tuple[list[Status], list[int]]:
        """What became of each key, and the staging blocks of those that are RESERVED."""
        statuses: list[Status] = []
        staging_blocks: list[int] = []
        admit = session.scope.policy.admit
        before, is_root = parent_key, parent_key == namespace_key
        reachable = is_root or self._is_reachable(session, parent_key)
        admitted = True
        for key in keys:
            status = pb.BLOCK_STATUS_ORPHAN
            if reachable:
                status = self._status(session, key)
                admitted = status != pb.BLOCK_STATUS_RESERVED or admit(key, session.scope.pool.slot_bytes, cost_s)
                if not admitted:
                    status = pb.BLOCK_STATUS_NOT_ADMITTED
                elif status == pb.BLOCK_STATUS_RESERVED:
                    block = self._reserve_one(session, key, before, is_root, cost_s)
                    if block is None:
                        status = pb.BLOCK_STATUS_NO_SPACE
                    else:
                        staging_blocks.append(block)
            elif admitted is False:  # what follows a refused block cannot be stored, but the policy learns from it
                admit(key, session.scope.pool.slot_bytes, cost_s)
            reachable = reachable and status in _LEADS_ON
            before, is_root = key, False
            statuses.append(status)
            self._count(status)
        return statuses, staging_blocks

    def start(self, session: Session, keys: Sequence[bytes], checksums: Sequence[int]) -> CopyJob:
        """The copies that a commit needs; `finish` has to follow when they have run."""
        found: list[Reservation | None] = []
        moves = []
        arena, staging = self._memory.arena, session.staging
        for key in keys:
            reservation = session.reservations.get(key)
            if reservation is None or reservation.copying or staging is None:
                found.append(None)
                continue
            reservation.copying = True
            found.append(reservation)
            moves.append((arena.address(reservation.slot), staging.address(reservation.staging_block)))
        session.num_copying += 1
        return CopyJob(session, found, checksums, moves, session.scope.block_bytes, [])

    def receive(self, session: Session, keys: Sequence[bytes], parent_key: bytes) -> CopyJob:
        """Room for blocks that come from another store: leading ones that are neither there nor on their way.

        parent_key: empty for a sequence's first block. Whoever fills the slots of `reservations` sets `checksums`, one
        each, adds to `copied` what it computed of leading ones, and calls `finish`.
        """
        found: list[Reservation | None] = []
        before, is_root = parent_key or bytes(KEY_BYTES), not parent_key
        reachable = is_root or self._is_reachable(session, before)
        for key in keys if reachable else ():
            if self._status(session, key) != pb.BLOCK_STATUS_RESERVED:
                break
            reservation = self._reserve_slot(session, key, before, is_root, 0.0, -1)
            if reservation is None:
                break
            reservation.copying = True
            found.append(reservation)
            before, is_root = key, False
        session.num_copying += 1
        return CopyJob(session, found, (), [], session.scope.block_bytes, [])

    def finish(self, job: CopyJob) -> list[Status]:
        """Publishes what arrived as it was sent, in order; what became of each key."""
        session = job.session
        session.num_copying -= 1
        copied = iter(job.copied)
        statuses: list[Status] = []
        stored: list[bytes] = []
        chain: list[bytes] = []
        chain_parent = b""
        for reservation, checksum in zip(job.reservations, job.checksums, strict=True):
            if reservation is None:
                statuses.append(pb.BLOCK_STATUS_EXPIRED)
                continue
            arrived = next(copied, None)
            status = self._publish(reservation, checksum, arrived)
            self._count(status)
            statuses.append(status)
            if status == pb.BLOCK_STATUS_PRESENT:
                if chain and chain[-1] != reservation.parent_key:
                    self._events.publish([Stored(tuple(chain), chain_parent, MEMORY, session.scope.tenant)])
                    chain = []
                chain_parent = chain_parent if chain else reservation.parent_key
                chain.append(reservation.key)
                stored.append(reservation.key)
        if chain:
            self._events.publish([Stored(tuple(chain), chain_parent, MEMORY, session.scope.tenant)])
            self.on_stored(session, stored)
        self._close_staging(session)
        return statuses

    def give_up(self, session: Session, keys: Sequence[bytes]) -> None:
        """Ends reservations that will not be committed."""
        for key in keys:
            reservation = session.reservations.get(key)
            if reservation is not None and not reservation.copying:
                self._end(reservation)

    def abandon_all(self, session: Session) -> None:
        """Ends what a client left behind; copies that run end in `finish`."""
        for reservation in list(session.reservations.values()):
            if not reservation.copying:
                self._end(reservation)
                self._counters.add("reservations_abandoned")
        self._close_staging(session)

    def expire(self, now_s: float) -> None:
        """Ends reservations that are over their time."""
        for reservation in [r for r in self._pending.values() if r.deadline_s <= now_s and not r.copying]:
            self._end(reservation)
            self._counters.add("reservations_expired")

    def unpin(self, rows: set[int]) -> None:
        """Rows are about to leave memory whatever follows them: reservations no longer keep them."""
        for reservation in self._pending.values():
            if reservation.pinned_parent in rows:
                self._unpin(reservation)

    def _is_reachable(self, session: Session, key: bytes) -> bool:
        pending = self._pending.get(key)
        if pending is not None:
            return pending.session.scope is session.scope
        row = self._index.find(key)
        return row != 0 and self._index.scope[row] == session.scope.number

    def _status(self, session: Session, key: bytes) -> Status:
        row = self._index.find(key)
        if row:
            same = self._index.scope[row] == session.scope.number
            return pb.BLOCK_STATUS_PRESENT if same else pb.BLOCK_STATUS_FOREIGN
        pending = self._pending.get(key)
        if pending is not None:
            return pb.BLOCK_STATUS_PENDING if pending.session.scope is session.scope else pb.BLOCK_STATUS_FOREIGN
        return pb.BLOCK_STATUS_RESERVED

    def _reserve_one(self, session: Session, key: bytes, parent_key: bytes, is_root: bool, cost_s: float) -> int | None:
        block = session.staging.take() if session.staging is not None else None
        if block is None or session.staging is None:
            return None
        if self._reserve_slot(session, key, parent_key, is_root, cost_s, block) is None:
            session.staging.give_back(block)
            return None
        return block

    def _reserve_slot(
        self, session: Session, key: bytes, parent_key: bytes, is_root: bool, cost_s: float, block: int
    ) -> Reservation | None:
        parent = ROOT if is_root else self._index.find(parent_key)
        if parent:
            self._index.num_memory_children[parent] += 1  # before there is an eviction that could take it
        slot = self._memory.allocate(session.scope)
        if slot is None:
            if parent:
                self._index.num_memory_children[parent] -= 1
            return None
        deadline_s = self._clock() + self._timeout_s
        reservation = Reservation(key, parent_key, is_root, slot, block, session, cost_s, deadline_s, parent)
        session.reservations[key] = self._pending[key] = reservation
        return reservation

    def _publish(self, reservation: Reservation, checksum: int, arrived: int | None) -> Status:
        index, session = self._index, reservation.session
        parent = ROOT if reservation.is_root else index.find(reservation.parent_key)
        if parent and index.scope[parent] != session.scope.number:
            parent = ROOT
        status: Status = pb.BLOCK_STATUS_PRESENT
        if session.closed or arrived is None:
            status = pb.BLOCK_STATUS_EXPIRED
        elif arrived != checksum:
            status = pb.BLOCK_STATUS_CORRUPT
        elif parent == ROOT and not reservation.is_root:
            status = pb.BLOCK_STATUS_ORPHAN
        if status == pb.BLOCK_STATUS_PRESENT:
            row = index.add(reservation.key, parent, session.scope.number, checksum)
            index.cost_s[row] = reservation.cost_s
            self._memory.add(row, session.scope, reservation.slot)
            self._counters.add("stored")
            if self._disk is not None:
                self._disk.write(row, session.scope)
            self._end(reservation, free_slot=False)
        else:
            self._end(reservation)
        return status

    def _end(self, reservation: Reservation, *, free_slot: bool = True) -> None:
        session = reservation.session
        del self._pending[reservation.key], session.reservations[reservation.key]
        self._unpin(reservation)
        if free_slot:
            self._memory.arena.free(session.scope.pool, reservation.slot)
        if session.staging is not None:
            session.staging.give_back(reservation.staging_block)

    def _unpin(self, reservation: Reservation) -> None:
        if reservation.pinned_parent:
            self._index.num_memory_children[reservation.pinned_parent] -= 1
            reservation.pinned_parent = 0

    def _close_staging(self, session: Session) -> None:
        if session.closed and not session.num_copying and session.staging is not None:
            session.staging.close()

    def _count(self, status: Status) -> None:
        name = _COUNTER.get(status)
        if name is not None:
            self._counters.add(name)


_LEADS_ON = (pb.BLOCK_STATUS_RESERVED, pb.BLOCK_STATUS_PRESENT, pb.BLOCK_STATUS_PENDING)
_COUNTER = {
    pb.BLOCK_STATUS_ORPHAN: "refused_orphan",
    pb.BLOCK_STATUS_FOREIGN: "refused_foreign",
    pb.BLOCK_STATUS_NOT_ADMITTED: "refused_not_admitted",
    pb.BLOCK_STATUS_CORRUPT: "checksum_failures_commit",
}
