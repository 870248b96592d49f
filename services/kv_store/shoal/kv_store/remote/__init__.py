"""Blocks of other hosts' stores: who has them, and how they come here.

- `rendezvous` says which stores a chain belongs to; `addresses` which stores there are.
- `peer_server` answers other stores: it locates, grants tickets and takes offers. `tcp_server` sends what a ticket is
  for; `peer_server` does the same over gRPC for those who cannot reach its data port.
- `peer` calls one other store, with a breaker. `transfer` receives payloads, `pulling` makes visible blocks of them.
- `exchange` is what the store's control sees: locate, prefetch, and offers of what was stored here.

A block that comes from another store is verified against the checksum that came with the ticket, and again like any
other when it is read. Whatever goes wrong is a miss, within the caller's deadline, and counted.
"""
