"""What a store says of itself: sizes, counters, and the blocks that it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Store
from shoal.kv_store.tenants import Caller

_PART_BLOCKS: Final = 1024


def make_stats(store: Store, tenant: str, caller: Caller) -> pb.StatsResponse:
    """Sizes, of one tenant's blocks if that is named; counters are for those who may see every tenant."""
    numbers = {scope.number for scope in store.scopes.of_tenant(tenant)}
    sizes = [each for number, each in list(store.index.sizes.items()) if number in numbers]
    sessions = [session for session in store.sessions.values() if session.scope.number in numbers]
    arena, disk = store.arena, store.disk
    most_memory = min(store.tenants.memory_quota(tenant), arena.capacity_bytes) if tenant else arena.capacity_bytes
    response = pb.StatsResponse(
        num_blocks=sum(each.num_blocks for each in sizes),
        num_memory_blocks=sum(each.num_in_memory for each in sizes),
        num_disk_blocks=sum(each.num_on_disk for each in sizes),
        used_memory_bytes=arena.used_bytes(tenant) if tenant else arena.num_used_bytes,
        memory_bytes=most_memory,
        num_leased=sum(len(session.leases) for session in sessions),
        num_sessions=sum(not session.is_ticket for session in sessions),
        counters={} if caller.tenant else make_counters(store),
        pinned_bytes=store.pins.bytes_of(tenant),
        draining=store.draining,
        problems=[] if caller.tenant else store.problems,
        huge_pages=store.huge_pages.granted,
        huge_pages_problem=store.huge_pages.problem,
    )
    if store.describe_peers is not None and not caller.tenant:
        response.peers.extend(store.describe_peers())
    if disk is not None:
        response.disk_problem = disk.problem
        response.disk_bytes = (
            min(store.tenants.disk_quota(tenant), disk.capacity_bytes) if tenant else disk.capacity_bytes
        )
        response.used_disk_bytes = disk_bytes_of(store, tenant) if tenant else disk.used_bytes
    return response


def disk_bytes_of(store: Store, tenant: str) -> int:
    """Bytes of a tenant's blocks on disk."""
    scopes = store.scopes.of_tenant(tenant)
    return sum(store.index.sizes[scope.number].num_on_disk * scope.block_bytes for scope in scopes)


def make_counters(store: Store) -> dict[str, int]:
    """The store's own, and what the disk counts. Safe from any thread."""
    counters = dict(store.counters)
    if store.disk is not None:
        disk = store.disk.stats()
        counters |= {
            "disk_written": disk.num_written,
            "disk_read": disk.num_read,
            "disk_corrupt": disk.num_corrupt,
            "disk_torn": disk.num_torn,
            "disk_io_errors": disk.num_io_errors,
            "disk_stalls": disk.num_stalls,
            "disk_openings": disk.num_openings,
            "disk_moved": disk.num_moved,
            "disk_dropped": disk.num_dropped,
            "disk_checkpoint_failures": disk.num_checkpoint_failures,
        }
        counters |= {f"disk_refused_{reason}": num for reason, num in disk.num_refused.items()}
    return counters


async def list_blocks(store: Store, tenant: str, limit: int) -> AsyncIterator[pb.ListResponse]:
    """Visible blocks in parts, at most `limit` if that is not 0."""
    scopes = {scope.number: scope for scope in store.scopes.of_tenant(tenant)}
    response, num_left, row = pb.ListResponse(), limit or -1, 0
    while num_left and (row := row + 1) < store.index.num_rows:
        scope = scopes.get(store.index.scope[row])
        if scope is not None:
            num_left -= 1
            response.blocks.append(_describe(store, row, scope))
        if len(response.blocks) == _PART_BLOCKS:
            yield response
            response = pb.ListResponse()
        if row % _PART_BLOCKS == 0:
            await asyncio.sleep(0)  # others' turn: so many take some 3 ms
    if response.blocks:
        yield response


def _describe(store: Store, row: int, scope: Scope) -> pb.Block:
    index = store.index
    parent = index.parent[row]
    return pb.Block(
        key=index.key(row),
        parent_key=index.key(parent) if parent else b"",
        tenant=scope.tenant,
        fingerprint=scope.fingerprint,
        num_bytes=scope.block_bytes,
        in_memory=index.slot[row] != NO_SLOT,
        on_disk=index.on_disk[row] != 0,
        num_leases=index.num_leases[row],
        num_pins=index.num_pins[row],
        idle_s=index.now_s - index.last_used_s[row],
    )
