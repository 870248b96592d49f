"""Remembers recent requests: where they could have gone, where they went, and what came of it."""
