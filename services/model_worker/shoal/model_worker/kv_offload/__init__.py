"""Blocks that are on the device go to the node's KV store, and come back when computing them again takes longer.

The engine's thread decides (`offload`, by `prefill_rate` and `shoal.kv_client.pricing`). One thread asks and one loads
(`reading`), a few have the store bring blocks from disk and peers (`prefetching`), one writes (`write_back`): each with
sessions of its own (`sessions`), and none is ended by a failure (`guarding`). `memory` is how they reach the device's
blocks. No torch here.
"""
