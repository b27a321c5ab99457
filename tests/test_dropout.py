"""Drawn dropout: each element with probability p, independent of all others, and nothing kept but a seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from .peek import Draw, MaskDraw, dropout

every_draw = pytest.mark.parametrize("cls", [Draw, MaskDraw])  # a CPU's, a GPU's
every_p = pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.95])


def kept(draw: Draw | MaskDraw, rows: int, width: int) -> Tensor:
    """Return a draw as a float64 matrix, 0 where an element is dropped and 1 elsewhere."""
    return (draw(torch.ones(rows, width, dtype=torch.float64)) != 0).double()


def mask(rows: int, width: int, p: float, cls: type = Draw) -> Tensor:
    """Return one draw as a float64 matrix, 1 where an element is dropped."""
    return 1 - kept(cls(rows, width, p), rows, width)


def sigmas(found: float, expected: float, variance: float) -> float:
    return abs(found - expected) / math.sqrt(variance)


@every_p
def test_each_element_is_dropped_with_probability_p(p: float) -> None:
    draws, rows, width = 4000, 7, 11
    counts = sum(mask(rows, width, p) for _ in range(draws))
    assert sigmas(float(counts.sum()), draws * counts.numel() * p, draws * counts.numel() * p * (1 - p)) < 4
    chi_square = float(((counts - draws * p) ** 2 / (draws * p * (1 - p))).sum())  # one degree of freedom an element
    assert sigmas(chi_square, counts.numel(), 2 * counts.numel()) < 4


@every_p
def test_elements_of_one_draw_and_of_two_draws_are_independent(p: float) -> None:
    first, second = mask(600, 700, p) - p, mask(600, 700, p) - p
    pairs = {
        "neighbours in a row": (first[:, 1:], first[:, :-1]),
        "neighbours in a column": (first[1:], first[:-1]),
        "far apart": (first[:300], first[300:]),
        "two draws": (first, second),
        "two draws, shifted": (first[:, 1:], second[:, :-1]),
    }
    for name, (a, b) in pairs.items():
        assert sigmas(float((a * b).sum()), 0, a.numel() * (p * (1 - p)) ** 2) < 4, name


def test_the_number_of_dropped_elements_varies_as_a_binomial_does() -> None:
    n, p = 30 * 40, 0.2
    counts = torch.stack([mask(30, 40, p).sum() for _ in range(4000)])
    assert sigmas(float(counts.var()), n * p * (1 - p), 2 * (n * p * (1 - p)) ** 2 / 4000) < 4


def test_positions_in_a_large_matrix_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own integers are not: of n = 3 * 2^26 the lowest third gets 0.344 of them, 30 sigmas too many."""
    monkeypatch.setattr(dropout, "_CHUNK", 1 << 40)
    rows, width = 3 << 13, 1 << 13
    ((_, positions),) = Draw(rows, width, 0.01)._parts()
    low = int((positions < rows * width // 3).sum())
    assert sigmas(low, len(positions) / 3, len(positions) * 2 / 9) < 4


@every_draw
@pytest.mark.parametrize("p", [0.2, 0.8])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_products_with_a_dropped_matrix_equal_those_with_its_copy(
    cls: type, p: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "_CHUNK", chunk)
    x, a, ds, dx = (torch.randn(shape, dtype=torch.float64) for shape in ((9, 20), (3, 20), (9, 3), (9, 20)))
    draw = cls(9, 20, p)
    there = kept(draw, 9, 20)
    assert 0 < there.mean() < 1
    share = there / (1 - p) / draw.gain
    torch.testing.assert_close(draw(x), x * share)
    torch.testing.assert_close(draw.times(x, a), (x * share) @ a.t())
    want = dx + share * (ds @ a)
    torch.testing.assert_close(draw.backward(ds, x, a, dx), ds.t() @ (x * share))
    torch.testing.assert_close(dx, want)
    assert draw.backward(ds, None, a, dx) is None
    torch.testing.assert_close(dx, want + share * (ds @ a))
    torch.testing.assert_close(draw.backward(ds, x, a, None), ds.t() @ (x * share))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mask_is_added_to_a_gradient_of_any_dtype_and_goes_where_autograd_keeps_things(dtype: torch.dtype) -> None:
    draw, p = MaskDraw(5, 8, 0.5), 0.5
    x, a, ds = torch.ones(5, 8, dtype=dtype), torch.ones(2, 8, dtype=dtype), torch.ones(5, 2, dtype=dtype)
    there = draw(x)
    given = draw.give_up_mask()
    assert (given.shape, given.dtype) == ((5, 8), torch.bool)
    draw.take_mask(given)
    dx = torch.zeros_like(x)
    draw.backward(ds, x, a, dx)
    assert dx.dtype is dtype
    assert torch.equal(dx, there * 2)
    assert set(there.unique().tolist()) == {0.0, 1 / (1 - p)}


@every_draw
def test_manual_seed_makes_a_draw_reproducible_and_draws_differ(cls: type) -> None:
    torch.manual_seed(5)
    first, second = mask(20, 30, 0.3, cls), mask(20, 30, 0.3, cls)
    torch.manual_seed(5)
    assert torch.equal(mask(20, 30, 0.3, cls), first)
    assert not torch.equal(first, second)


@every_draw
def test_an_empty_matrix_drops_nothing(cls: type) -> None:
    for rows, width in ((0, 5), (5, 0)):
        x, a, ds = torch.ones(rows, width), torch.ones(2, width), torch.ones(rows, 2)
        draw = cls(rows, width, 0.5)
        assert draw.times(x, a).shape == (rows, 2)
        assert draw(x).shape == (rows, width)
        assert torch.equal(draw.backward(ds, x, a, torch.ones_like(x)), torch.zeros(2, width))


def test_tiny_probabilities_drop_nothing_and_great_ones_everything() -> None:
    assert mask(5, 5, 1e-12).sum() == 0
    assert mask(5, 5, 1 - 1e-12).sum() == 25
