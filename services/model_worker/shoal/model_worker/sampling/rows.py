"""Taking some rows of a batch without copying when they are all of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def take(tensor: Tensor, rows: NDArray[np.intp]) -> Tensor:
    """`tensor[rows]` for ascending distinct rows: the tensor itself if they are all of them, otherwise a copy."""
    return tensor if len(rows) == tensor.shape[0] else tensor[to_tensor(tensor, rows)]


def to_tensor(like: Tensor, array: NDArray[np.generic]) -> Tensor:
    """`array` on the device of `like`, its dtype kept."""
    return torch.from_numpy(array).to(like.device)
