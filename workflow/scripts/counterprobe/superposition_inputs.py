"""Sparse boolean inputs of toy networks, and probed texts in which the named factors are crossed exactly.

Three kinds, for three questions:

    all_sparse     every input with at most s ones: errors over ALL of them, a maximum that is no sample's
    four_cells     for a pair of inputs, its four values with the same number of active inputs in each (s in
                   all): the inputs over which a read-off of AND or XOR is defined (facts of Vaintrob, Mendel,
                   Haenni, 2024)
    paired_texts   texts for probes: four boolean factors crossed in all 16 combinations within each item, one
                   random background an item, so that the contrast of an item has no background in it at all

The task of `paired_texts` has 2m inputs in m pairs (2t, 2t + 1); feature t is the AND of its pair. A pair is
live with probability s/m and a live pair is 11, 10 or 01 with equal chances, so that the feature is on a
third of that time.

Pitfall: a background that is drawn anew in each cell would hide a small interaction in its own variance; one
that is drawn once an item cannot, and items are then the units of every split and interval.
"""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe.progress import UserError

FACTORS = 4


@dataclass(frozen=True)
class PairedTexts:
    """Inputs [items, 16, 2m] and the factors' values in the 16 cells [16, 4]."""

    inputs: Float[Tensor, "items cells inputs"]
    cells: Bool[Tensor, "cells factors"]


def all_sparse(m: int, s: int) -> Float[Tensor, "n m"]:
    """Every vector of {0, 1}^m with at most s ones, the fewest first."""
    rows = [chosen for size in range(s + 1) for chosen in itertools.combinations(range(m), size)]
    inputs = torch.zeros(len(rows), m)
    for row, chosen in enumerate(rows):
        inputs[row, list(chosen)] = 1.0
    return inputs


def all_pairs(m: int) -> Int[Tensor, "pairs 2"]:
    """All i < k below m."""
    return torch.tensor(list(itertools.combinations(range(m), 2)))


def boolean_pairs(
    inputs: Float[Tensor, "*n m"], pairs: Int[Tensor, "pairs 2"], target: str
) -> Float[Tensor, "*n pairs"]:
    """AND or XOR of each pair of inputs."""
    first, second = inputs[..., pairs[:, 0]], inputs[..., pairs[:, 1]]
    if target == "and":
        return first * second
    if target == "xor":
        return (first - second).abs()
    raise ValueError(f"target is 'and' or 'xor', not {target!r}")


def random_pairs(m: int, count: int, generator: torch.Generator) -> Int[Tensor, "pairs 2"]:
    """`count` different pairs (all of them where there are no more)."""
    pairs = all_pairs(m)
    return pairs[torch.randperm(len(pairs), generator=generator)[:count]]


def four_cells(
    m: int, pairs: Int[Tensor, "pairs 2"], active: Int[Tensor, "contexts"], generator: torch.Generator
) -> Float[Tensor, "pairs 4 contexts m"]:
    """The four values 00, 01, 10, 11 of each pair; in context c all four have active[c] ones in all.

    What the pair does not take of the active[c] ones goes to other inputs, drawn at random and the same ones
    for all cells as far as they reach. UserError unless 2 <= active <= m - 2.
    """
    if int(active.min()) < 2 or int(active.max()) > m - 2:
        raise UserError(
            f"superposition: {m} inputs take 2 to {m - 2} active ones, not {active.min()} to {active.max()}; "
            "change s or m"
        )
    n_pairs, n_contexts = len(pairs), len(active)
    keys = torch.rand(n_pairs, n_contexts, m, generator=generator)
    keys.scatter_(2, pairs[:, None, :].expand(-1, n_contexts, -1), 2.0)
    rank = keys.argsort(dim=2).argsort(dim=2)
    inputs = torch.zeros(n_pairs, 4, n_contexts, m)
    for cell, (first, second) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        inputs[:, cell] = (rank < (active - first - second)[None, :, None]).float()
        inputs[:, cell].scatter_(2, pairs[:, None, :1].expand(-1, n_contexts, -1), float(first))
        inputs[:, cell].scatter_(2, pairs[:, None, 1:].expand(-1, n_contexts, -1), float(second))
    return inputs


def live_pairs(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Float[Tensor, "*n inputs"]:
    """Random inputs, pair by pair; `shape` = (..., m) in pairs, the result (..., 2m)."""
    uniform = torch.rand(*shape, generator=generator)
    first = uniform < 2 * rate / 3
    second = (uniform < rate / 3) | ((uniform >= 2 * rate / 3) & (uniform < rate))
    return torch.stack((first, second), dim=-1).flatten(-2).float()


def paired_texts(m: int, s: float, items: int, level: str, generator: torch.Generator) -> PairedTexts:
    """Texts that cross four factors over a background of live pairs at the training rate s/m.

    level "features": the factors are the features 0 to 3. Where one is off its pair is 00, 10 or 01, drawn
    once an item. level "inputs": the factors are the four inputs of features 0 and 1, so that (0, 1) and (2,
    3) are the pairs whose AND the network computes, and the other four are pairs of which it computes
    nothing.
    """
    if m < FACTORS:
        raise UserError(f"superposition: {FACTORS} features are probed, and m = {m}; raise m")
    cells = torch.tensor([[bool(cell >> bit & 1) for bit in range(FACTORS)] for cell in range(2**FACTORS)])
    inputs = live_pairs((items, m), min(1.0, s / m), generator).unsqueeze(1).repeat(1, len(cells), 1)
    if level == "inputs":
        inputs[:, :, :FACTORS] = cells.float()
    elif level == "features":
        off = torch.randint(0, 3, (items, FACTORS), generator=generator)
        off_inputs = torch.stack((off == 1, off == 2), dim=-1).flatten(1).float()
        on = cells.float().repeat_interleave(2, dim=1)
        inputs[:, :, : 2 * FACTORS] = on[None] + (1 - on[None]) * off_inputs[:, None]
    else:
        raise ValueError(f"level is 'features' or 'inputs', not {level!r}")
    return PairedTexts(inputs, cells)
