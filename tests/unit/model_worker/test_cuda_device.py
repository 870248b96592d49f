from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import SetupError, set_up


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    config = WorkerConfig(model=str(tmp_path / "no-such-model"), device="cuda")
    with pytest.raises(SetupError, match=r"PyTorch sees no CUDA device.*--device cpu"):
        set_up(config, lambda stage, fraction: None)
