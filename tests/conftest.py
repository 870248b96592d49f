"""Settings of the whole test run."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: threads that spin at barriers starve each other when tests share the cores with anything.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Before triton is imported by anything: without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
