"""gRPC servers and errors, the same way in every service.

`errors` holds the one table domain error -> gRPC code -> HTTP status; `server` runs a service from its first health
check to its drained end; `status` moves errors over the wire.
"""
