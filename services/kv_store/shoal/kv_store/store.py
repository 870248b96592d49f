"""The store: everything a client may ask, on plain data. One thread owns it; only copies of payloads run elsewhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.worker.v1 import worker_pb2
from shoal.kv_store.ageing import Ageing
from shoal.kv_store.arena import Arena, Granted, SlotId, Staging
from shoal.kv_store.counters import Counters
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.events import MEMORY, EventHub
from shoal.kv_store.housekeeping import Housekeeping
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.latency import Latency
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.pins import Pins
from shoal.kv_store.removal import Removal
from shoal.kv_store.restoring import restore_blocks
from shoal.kv_store.scopes import PolicyFactory, Scope, Scopes
from shoal.kv_store.sessions import Lease, Session
from shoal.kv_store.sharing import Sharing
from shoal.kv_store.tenants import Tenants
from shoal.kv_store.writing import Writing
from shoal.rpc.errors import NotFound, ResourceExhausted

MAX_PREFETCH_S: Final = 10.0
NO_HUGE_PAGES: Final = Granted("off", "off")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of what one store gives out."""

    lease_timeout_s: float = 30.0
    max_sessions: int = 1024
    max_staging_bytes: int = 1 << 30
    """Of all sessions together."""
    event_buffer: int = 65_536
    ttl_s: float = 0.0
    """Time after which a block that nobody used goes; 0: never."""
    pinned_fraction: float = 0.5
    """Most of a tenant's memory that may be pinned."""


@dataclass(frozen=True, slots=True)
class Leased:
    """Where one leased block is."""

    place: SlotId
    generation: int
    checksum: int


class Store:
    """The core. Methods take keys in order of the chain, 16 bytes each, checked by the caller."""

    def __init__(
        self,
        arena: Arena,
        make_policy: PolicyFactory,
        limits: StoreLimits,
        tenants: Tenants | None = None,
        *,
        huge_pages: Granted = NO_HUGE_PAGES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = secrets.randbits(63) | 1
        self.arena = arena
        self.limits = limits
        self.tenants = tenants or Tenants()
        self.counters = Counters()
        self.latency = Latency()
        self.housekeeping = Housekeeping(self.counters)
        self.index = BlockIndex()
        self.events = EventHub(epoch=self.epoch, buffer=limits.event_buffer, list_keys=self._list_keys)
        self.scopes = Scopes(arena, make_policy)
        parts = (arena, self.index, self.scopes, self.events, self.counters)
        self.memory = MemoryTier(*parts, self.tenants.memory_quota)
        self.pins = Pins(self.index, self.scopes, self.counters, self._most_pinned_bytes, clock)
        self.writing = Writing(self.memory, self.index, self.events, self.counters, limits.lease_timeout_s, clock)
        self.sessions: dict[bytes, Session] = {}
        self.removal = Removal(
            self.memory, self.index, self.scopes, self.writing, self.counters, self.sessions, self.pins
        )
        self._ageing = Ageing(self.index, self.removal, limits.ttl_s)
        self.disk: DiskTier | None = None
        self.describe_peers: Callable[[], list[pb.PeerStats]] | None = None
        """What is known of other stores, where blocks are shared."""
        self.draining = False
        """Whether no more blocks are taken."""
        sharing = Sharing(
            self.memory,
            self.index,
            self.scopes,
            self.removal,
            self.counters,
            self.sessions,
            limits.lease_timeout_s,
            clock,
        )
        self.memory.share_by(sharing.claim_chunk)
        self._staging_bytes = 0
        self._num_ticket_sessions = 0
        self.huge_pages = huge_pages
        self.clock = clock
        self._started_s = clock()

    def attach_disk(self, disk: DiskTier) -> None:
        """Gives the store a second tier, and shows what is on it. Called before anything is stored."""
        self.disk = disk
        self.removal.attach_disk(disk)
        self.writing.attach_disk(disk)
        disk.lose_with(self.removal.remove_lost)
        restore_blocks(disk.log, self.index, self.scopes)

    # Sessions

    def open_session(self, tenant: str, fingerprint: bytes, block_bytes: int, num_staging_blocks: int) -> Session:
        """A session, to be ended by `close_session`. Raises InvalidArgument, ResourceExhausted."""
        if self.num_clients >= self.limits.max_sessions:
            self.counters.add("sessions_refused")
            raise ResourceExhausted(f"{self.limits.max_sessions} sessions are open, which is the most")
        scope = self.scopes.open(tenant, fingerprint, block_bytes)
        staging = None
        if num_staging_blocks:
            wanted = num_staging_blocks * scope.pool.slot_bytes
            if self._staging_bytes + wanted > self.limits.max_staging_bytes:
                self.counters.add("sessions_refused")
                left = self.limits.max_staging_bytes - self._staging_bytes
                raise ResourceExhausted(f"{wanted} bytes of staging asked for, {left} are left")
            try:
                staging = Staging(block_bytes, num_staging_blocks, self.huge_pages.asked)
            except MemoryError as error:
                raise ResourceExhausted(str(error)) from None
            self._staging_bytes += staging.memory.num_bytes
        session = Session(secrets.token_bytes(16), scope, staging)
        self.sessions[session.id] = session
        self.counters.add("sessions_opened")
        return session

    def open_ticket_session(self, scope: Scope) -> Session:
        """One for a ticket of another store. It takes no client's place: tickets have a bound of their own."""
        session = Session(secrets.token_bytes(16), scope, None, is_ticket=True)
        self.sessions[session.id] = session
        self._num_ticket_sessions += 1
        return session

    @property
    def num_clients(self) -> int:
        """Sessions of clients."""
        return len(self.sessions) - self._num_ticket_sessions

    def close_session(self, session: Session) -> None:
        """Ends what the session holds. Copies that run are ended by `writing.finish`."""
        if session.closed:
            return
        session.closed = True
        del self.sessions[session.id]
        self._num_ticket_sessions -= session.is_ticket
        for key in list(session.leases):
            self.counters.add("leases_abandoned", self._drop_lease(session, key))
        for chunk in session.retired_chunks:
            self.arena.unmapped(chunk)
        self.writing.abandon_all(session)
        if session.staging is not None:
            self._staging_bytes -= session.staging.memory.num_bytes

    def find_session(self, session_id: bytes) -> Session:
        """Raises NotFound."""
        session = self.sessions.get(session_id)
        if session is None:
            raise NotFound("scope.session: no such session; it ends with the client's socket")
        return session

    # Reading

    def lookup(self, scope: Scope, keys: Sequence[bytes]) -> tuple[int, int]:
        """(leading blocks visible in any tier, leading blocks in memory). Counts as use."""
        rows = self._find(scope, keys)
        num_in_memory = self._count_in_memory(rows)
        num_visible = self._count_visible(rows, num_in_memory)
        self._count_hits(len(keys), num_visible, num_in_memory)
        self.memory.touch(keys[: len(rows)], rows, scope)
        return num_visible, num_in_memory

    def start_prefetch(
        self, scope: Scope, keys: Sequence[bytes], timeout_s: float = MAX_PREFETCH_S
    ) -> list[Future[bool]]:
        """Reads of the leading blocks that are on disk only; those not begun within the time are not made."""
        if self.disk is None or not self.disk.readable:
            return []
        rows = []
        for key in keys:
            row = self.index.find(key)
            if not row or self.index.scope[row] != scope.number:
                break
            if self.index.slot[row] == NO_SLOT:
                rows.append(row)
        return self.disk.read(rows, scope, self.clock() + timeout_s)

    def acquire(self, session: Session, keys: Sequence[bytes]) -> tuple[list[Leased], int]:
        """Leases on the leading blocks in memory, and how many leading blocks are visible in any tier."""
        scope, index = session.scope, self.index
        rows = self._find(scope, keys)
        num_in_memory = self._count_in_memory(rows)
        num_visible = self._count_visible(rows, num_in_memory)
        self._count_hits(len(keys), num_visible, num_in_memory)
        deadline_s = self.clock() + self.limits.lease_timeout_s
        leased = []
        for key, row in zip(keys, rows[:num_in_memory], strict=False):
            index.num_leases[row] += 1
            lease = session.leases.get(key)
            if lease is None:
                session.leases[key] = Lease(1, deadline_s)
            else:
                lease.count += 1
                lease.deadline_s = deadline_s
            slot = index.slot[row]
            leased.append(Leased(SlotId.unpacked(slot), self.arena.generation(slot), index.checksum[row]))
        self.memory.touch(keys[: len(rows)], rows, scope)
        self.counters.add("leases_granted", num_in_memory)
        return leased, num_visible

    def release(self, session: Session, keys: Sequence[bytes]) -> None:
        """Gives back one lease a key. Those that are not held, or no longer, are left alone."""
        for key in keys:
            lease = session.leases.get(key)
            if lease is None:
                continue
            if lease.count > 1:
                lease.count -= 1
                self.index.num_leases[self.index.find(key)] -= 1
            else:
                self._drop_lease(session, key)

    def map_chunk(self, session: Session, number: int) -> int:
        """The descriptor of a chunk of the session's tenant. Raises NotFound for any other."""
        chunk = self.arena.chunk_numbered(number)
        if chunk is None or number not in session.scope.pool.chunks:
            raise NotFound(f"chunk: {number} is not a chunk of this tenant's blocks")
        session.mapped_chunks.add(number)
        return chunk.memory.fd

    def take_retired(self, session: Session) -> list[int]:
        """Chunks that the session has to unmap."""
        return list(session.retired_chunks)

    def note_unmapped(self, session: Session, chunks: Sequence[int]) -> None:
        """The client no longer maps chunks."""
        for number in chunks:
            if session.retired_chunks.pop(number, None) is not None:
                self.arena.unmapped(number)

    # Housekeeping

    @property
    def problems(self) -> list[str]:
        """What does not work at the moment beside the disk and other stores."""
        return [*self.housekeeping.problems, *([self.arena.problem] if self.arena.problem else [])]

    def expire(self) -> list[Session]:
        """Ends leases, reservations, pins and blocks that are over their time. Called about once a second.

        Returns the sessions that still map chunks they should not; the caller ends their connections.
        """
        now_s = self.clock()
        for session in list(self.sessions.values()):
            late = [key for key, lease in session.leases.items() if lease.deadline_s <= now_s]
            for key in late:
                self.counters.add("leases_expired", self._drop_lease(session, key))
        self.writing.expire(now_s)
        self.pins.expire()
        self.index.now_s = int(now_s - self._started_s)
        self._ageing.sweep()
        if self.disk is not None:
            self.disk.retry()
        return [s for s in self.sessions.values() if any(at <= now_s for at in s.retired_chunks.values())]

    def pin(self, scope: Scope, owner: str, keys: Sequence[bytes], ttl_s: float) -> int:
        """Keeps leading blocks that are in memory there; how many."""
        rows = self._find(scope, keys)
        return self.pins.pin(scope, owner, keys, rows[: self._count_in_memory(rows)], ttl_s)

    def close(self) -> None:
        """Ends every session and gives all memory back. No copy may be running."""
        for session in list(self.sessions.values()):
            self.close_session(session)
        self.events.close()
        if self.disk is not None:
            self.disk.close()
        self.index.close()
        self.arena.close()

    def _most_pinned_bytes(self, tenant: str) -> int:
        quota_bytes = min(self.tenants.memory_quota(tenant), self.arena.capacity_bytes)
        return int(self.limits.pinned_fraction * quota_bytes)

    def _find(self, scope: Scope, keys: Sequence[bytes]) -> Sequence[int]:
        rows = self.index.prefix(keys, scope.number)
        if len(rows) < len(keys):
            self.note_foreign(scope, keys[len(rows)])
        return rows

    def note_foreign(self, scope: Scope, key: bytes) -> bool:
        """Counts a key that another scope has; whether it is one."""
        row = self.index.find(key)
        if not row or self.index.scope[row] == scope.number:
            return False
        other = self.scopes.numbered(self.index.scope[row])
        self.counters.add("foreign_tenant" if other.tenant != scope.tenant else "foreign_fingerprint")
        return True

    def _count_in_memory(self, rows: Sequence[int]) -> int:
        slots = self.index.slot
        for position, row in enumerate(rows):
            if slots[row] == NO_SLOT:
                return position
        return len(rows)

    def _count_visible(self, rows: Sequence[int], num_in_memory: int) -> int:
        """What is on a disk that cannot be read is not visible."""
        return num_in_memory if self.disk is not None and not self.disk.readable else len(rows)

    def _count_hits(self, num_asked: int, num_visible: int, num_in_memory: int) -> None:
        self.counters.add("hits_memory", num_in_memory)
        self.counters.add("hits_disk", num_visible - num_in_memory)
        self.counters.add("misses", num_asked - num_visible)

    def _drop_lease(self, session: Session, key: bytes) -> int:
        count = session.leases.pop(key).count
        self.index.num_leases[self.index.find(key)] -= count
        return count

    def _list_keys(self, tier: worker_pb2.Tier.ValueType, tenant: str) -> list[bytes]:
        index = self.index
        scopes = {scope.number for scope in self.scopes.of_tenant(tenant)}
        rows = (row for row in index.in_order() if index.scope[row] in scopes)
        if tier == MEMORY:
            return [index.key(row) for row in rows if index.slot[row] != NO_SLOT]
        return [index.key(row) for row in rows if index.on_disk[row]]
