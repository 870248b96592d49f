"""Every family through the GPU's kernels: compiled on a GPU, else interpreted on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionShape
from shoal.kernels.paged_attention.gpu_plan import describe_pages, plan_decode, plan_mixed
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.loader import LoadedModel, load_model
from support.gpu_kernels import DEVICE, gpu_kernels
from support.tiny_models import FAMILIES, TINY, reference_logits, save_tiny

pytest.importorskip("triton", reason="needs triton")

BLOCK_SIZE = 16
NUM_PROMPT_TOKENS, NUM_TOKENS = 30, 31
"""Past every window (24)."""

INTERPRETED = [
    *("llama3", "qwen3, biases, upper layers with a window", "gemma3, scaled rope, caps", "phi4-mini, longrope"),
    *("smollm3, window without rope", "olmo2"),
]
"""What differs for the kernels: interpreting takes seconds for each."""


@pytest.fixture(autouse=True)
def _gpu_kernels() -> Iterator[None]:
    with gpu_kernels():
        yield


class GpuForward:
    """One sequence: a step with its prompt, then steps of one token, planned as the GPU's runner plans them."""

    def __init__(self, loaded: LoadedModel, max_tokens: int) -> None:
        config = loaded.config
        layout = RowsLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, loaded.dtype)
        num_blocks = -(-max_tokens // BLOCK_SIZE)
        self._model, self._shape = loaded.model, AttentionShape(layout, config.num_heads)
        self._cache = layout.allocate(num_blocks).fill_(float("nan"))
        self._pages = describe_pages(self._cache, self._shape)
        self._tables = torch.arange(num_blocks, dtype=torch.int32, device=DEVICE)[None]
        self._row = torch.zeros(1, dtype=torch.int32, device=DEVICE)

    def step(self, token_ids: Tensor, first: int) -> Tensor:
        """Logits of tokens that begin at position `first`."""
        starts, lengths = np.array([0, len(token_ids)], np.int32), np.array([first + len(token_ids)], np.int32)
        if len(token_ids) == 1:
            on_device = [torch.from_numpy(array).to(DEVICE) for array in (starts, lengths)]
            plan = plan_decode(self._shape, self._pages, on_device[0], on_device[1], self._tables, self._row)
        else:
            plan = plan_mixed(self._shape, self._pages, starts, lengths, self._tables, self._row)
        positions = torch.arange(first, first + len(token_ids), dtype=torch.int32, device=DEVICE)
        with torch.inference_mode():
            batch = ForwardBatch(token_ids.int().to(DEVICE), positions, positions, plan)
            return self._model.compute_logits(self._model.forward(batch, self._cache)).cpu()


@pytest.mark.parametrize("variant", FAMILIES if DEVICE.type == "cuda" else INTERPRETED)
def test_matches_transformers(variant: str, tmp_path: Path) -> None:
    reference = save_tiny(tmp_path, variant)
    loaded = load_model(tmp_path, dtype="float32", device=DEVICE.type, max_model_len=64)
    token_ids = torch.randint(0, TINY["vocab_size"], (NUM_TOKENS,), generator=torch.Generator().manual_seed(2))
    forward = GpuForward(loaded, NUM_TOKENS)
    parts = [forward.step(token_ids[:NUM_PROMPT_TOKENS], 0)]
    parts += [forward.step(token_ids[i : i + 1], i) for i in range(NUM_PROMPT_TOKENS, NUM_TOKENS)]
    expected = reference_logits(reference, token_ids)
    torch.testing.assert_close(torch.cat(parts), expected, atol=3e-4 * float(expected.std()), rtol=1e-4)
