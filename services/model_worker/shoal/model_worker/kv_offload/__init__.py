"""Blocks that are on the device go to the node's KV store, and come back when computing them again takes longer.

The engine's thread decides (`offload`, by `prefill_rate` and `shoal.kv_client.pricing`); two threads read (`reading`:
questions and loads; `prefetching`: what the store has to bring from disk) and one writes (`write_back`), each with
sessions of its own (`sessions`). `memory` is how they reach the device's blocks. No torch here.
"""
