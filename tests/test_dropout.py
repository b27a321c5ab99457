"""Drawn dropout: each element with probability p, independent of all others, and nothing kept but a seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from .peek import Draw, dropout

CPU = torch.device("cpu")
every_p = pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.95])


def mask(rows: int, width: int, p: float) -> Tensor:
    """Return one draw as a float64 matrix, 1 where an element is dropped."""
    return 1 - Draw(rows, width, p, CPU)(torch.ones(rows, width, dtype=torch.float64))


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
    monkeypatch.setattr(dropout, "_CHUNK", {})
    rows, width = 3 << 13, 1 << 13
    ((_, positions),) = Draw(rows, width, 0.01, CPU)._parts()
    low = int((positions < rows * width // 3).sum())
    assert sigmas(low, len(positions) / 3, len(positions) * 2 / 9) < 4


@pytest.mark.parametrize("p", [0.2, 0.8])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_products_with_a_dropped_matrix_equal_those_with_its_copy(
    p: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "_CHUNK", {"cpu": chunk})
    x, a, ds, dx = (torch.randn(shape, dtype=torch.float64) for shape in ((9, 20), (3, 20), (9, 3), (9, 20)))
    draw = Draw(9, 20, p, CPU)
    kept = draw(torch.ones_like(x))
    assert 0 < kept.mean() < 1
    assert torch.equal(draw(x), x * kept)
    assert torch.allclose(draw.times(x, a), (x * kept) @ a.t())
    want = dx + kept * (ds @ a)
    assert torch.allclose(draw.backward(ds, x, a, dx), ds.t() @ (x * kept))
    assert torch.allclose(dx, want)
    assert draw.backward(ds, None, a, dx) is None
    assert torch.allclose(dx, want + kept * (ds @ a))
    assert torch.allclose(draw.backward(ds, x, a, None), ds.t() @ (x * kept))


def test_manual_seed_makes_a_draw_reproducible_and_draws_differ() -> None:
    torch.manual_seed(5)
    first, second = mask(20, 30, 0.3), mask(20, 30, 0.3)
    torch.manual_seed(5)
    assert torch.equal(mask(20, 30, 0.3), first)
    assert not torch.equal(first, second)


def test_an_empty_matrix_and_tiny_probabilities_drop_nothing() -> None:
    for rows, width in ((0, 5), (5, 0)):
        assert Draw(rows, width, 0.5, CPU)(torch.ones(rows, width)).shape == (rows, width)
        assert Draw(rows, width, 0.5, CPU).times(torch.ones(rows, width), torch.ones(2, width)).shape == (rows, 2)
    assert mask(5, 5, 1e-12).sum() == 0
    assert mask(5, 5, 1 - 1e-12).sum() == 25
