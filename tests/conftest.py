"""Settings of the whole test run."""

from __future__ import annotations

import os

# Before torch is imported: threads that spin at barriers starve each other when tests share the cores with anything.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
