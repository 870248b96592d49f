"""The pool of native operations, seen through a product that is split over threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from shoal.kernels.linear import PackedWeight, linear, pack
from shoal.kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler here")

ROUNDS = 300
DEADLINE_S = 60


@pytest.fixture(autouse=True)
def many_threads() -> Iterator[None]:
    """More threads than cores, so that helpers are late, asleep and preempted."""
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Product:
    """One that is split in 30 pieces, and its result."""

    x: Tensor
    weight: PackedWeight
    expected: Tensor

    @classmethod
    def make(cls, seed: int) -> Product:
        generator = torch.Generator().manual_seed(seed)
        weight, x = torch.randn(640, 64, generator=generator), torch.randn(3, 64, generator=generator)
        packed = pack(weight)
        product = cls(x, packed, linear(x, packed))
        torch.testing.assert_close(product.expected, x @ weight.T, atol=1e-4, rtol=1e-4)
        return product

    def stays_right(self) -> bool:
        return all(torch.equal(linear(self.x, self.weight), self.expected) for _ in range(ROUNDS))


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    products = [Product.make(seed) for seed in range(4)]
    with ThreadPoolExecutor(len(products)) as pool:
        assert all(pool.map(Product.stays_right, products, timeout=DEADLINE_S))


def test_a_forked_child_has_no_helpers_and_does_not_wait_for_them() -> None:
    product = Product.make(0)  # here: torch's own operations cannot run in a forked child
    child = multiprocessing.get_context("fork").Process(target=_exit_with_result, args=(product,))
    child.start()
    child.join(DEADLINE_S)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0


def _exit_with_result(product: Product) -> None:
    raise SystemExit(0 if product.stays_right() else 1)
