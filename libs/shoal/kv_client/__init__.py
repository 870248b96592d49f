"""The same-host client of the KV store: blocks by key, through shared memory."""
