"""Labels that contain nothing the model could have learned: a probe that reads them reads something else.

*Dichotomies.* A balanced labelling of the 2^m cells of a design, orthogonal to given parities:

    Σ over cells of  y(cell) · Π_{f in t} s_f(cell) = 0       for every forbidden parity t,   y, s = ±1,

so nothing about the forbidden parities helps to read it. With the basic factors, the needed parities and the
target forbidden, accuracy on dichotomies is what the geometry of the activations gives any XOR-like
labelling for free (the "shattering dimensionality" of Bernardi et al. 2020, Cell 183(4),
https://doi.org/10.1016/j.cell.2020.09.031, is the same measurement over all balanced ones). Selectivity =
accuracy of the target - their mean, paired.

*Shuffled.* The target's labels permuted within each item: every item keeps its share of True. Anything but
chance is an error in the code or in the split.

*Control task* (Hewitt and Liang 2019, https://arxiv.org/abs/1909.03368): a random label per carrier token,
the same wherever it occurs. Reads how much the probe can memorise; needs a split on which training and test
share carriers.

Pitfalls: a dichotomy and its complement are one dichotomy, and few are orthogonal to much. Of 16 cells, 74
avoid the four basic factors and one needed pair, and 45 or 49 a needless target as well: all of them are
taken then, and the mean over them is no sample. Of 8 cells there are too few: no such control, a UserError.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from counterprobe import designs
from counterprobe.designs import Design
from counterprobe.progress import UserError

# C(16, 8) = 12,870 balanced labellings are listed in milliseconds; C(32, 16) would be 600 million.
MOST_ENUMERATED_FACTORS = 4
# A mean over fewer labellings says little about labellings in general.
FEWEST = 16


def forbidden_parities(design: Design, target: str) -> tuple[str, ...]:
    """What a target's dichotomies are orthogonal to: basic factors, needed parities, the target itself."""
    wanted = {*design.factors, *design.needed, designs.canonical(design, target)}
    return tuple(name for name in designs.targets(design) if name in wanted)


def dichotomies(
    factors: Sequence[str],
    forbidden: Iterable[str],
    count: int,
    rng: np.random.Generator,
    at_least: int = FEWEST,
) -> Bool[np.ndarray, "N cells"]:
    """Different balanced labellings of the 2^m cells (bit i of a cell is factor i), each with cell 0 False.

    `forbidden`: parities as factor names joined by "^". Gives `count` labellings, or all that exist where
    they are fewer but not fewer than `at_least`; below that a UserError says how many there are. Up to four
    factors all are listed and drawn from without replacement; above, balanced labellings walk by swapping a
    True and a False cell until every correlation is 0, which reaches all of them but not with exactly equal
    chances.
    """
    names = list(factors)
    cells = np.arange(2 ** len(names))
    signs = 1 - 2 * ((cells[:, None] >> np.arange(len(names))) & 1)
    parities = sorted({tuple(sorted(names.index(f) for f in parity.split("^"))) for parity in forbidden})
    columns = np.array([np.prod(signs[:, list(parity)], axis=1) for parity in parities], np.int64)
    columns = columns.reshape(len(parities), len(cells)).T
    if len(names) <= MOST_ENUMERATED_FACTORS:
        every = _balanced(len(cells))
        every = every[~((2 * every.astype(np.int64) - 1) @ columns).any(axis=1)]
        found = every[rng.permutation(len(every))[:count]]
    else:
        found = _walked(columns, count, rng)
    if len(found) < min(count, at_least):
        verb = "exist" if len(names) <= MOST_ENUMERATED_FACTORS else "were found"
        raise UserError(
            f"label control 'dichotomy': {len(found)} balanced labellings of {len(cells)} cells orthogonal "
            f"to {len(parities)} parities {verb}, {min(count, at_least)} are needed; add a feature"
        )
    return found


def dichotomy_labels(
    design: Design, target: str, count: int, rng: np.random.Generator, at_least: int = FEWEST
) -> Bool[np.ndarray, "n N"]:
    """Dichotomies for one target of a design, as labels of its texts. UserError as `dichotomies`."""
    drawn = dichotomies(list(design.factors), forbidden_parities(design, target), count, rng, at_least)
    return drawn.T[designs.cells(design)]


def shuffled_within_items(
    labels: Bool[np.ndarray, "n *K"], items: Int[np.ndarray, "n"], rng: np.random.Generator
) -> Bool[np.ndarray, "n *K"]:
    """Labels permuted within each item, each column by a permutation of its own."""
    columns = labels.reshape(len(labels), -1)
    home = np.argsort(items, kind="stable")
    keys = rng.random(columns.shape)
    out = np.empty_like(columns)
    for k, column in enumerate(columns.T):
        # Both orders list the items one after another, so texts meet labels of their own item.
        out[home, k] = column[np.lexsort((keys[:, k], items))]
    return out.reshape(labels.shape)


def carrier_tokens(design: Design, factor: str) -> Int[np.ndarray, "n"]:
    """Which token realises a factor in each text: the unit and its class, since a unit may be a pair of
    tokens."""
    if factor not in design.carriers:
        known = ", ".join(design.carriers) or "none"
        raise UserError(f"design '{design.name}': '{factor}' has no declared carriers (those that have: {known})")
    return 2 * design.carriers[factor] + design.factors[factor]


def control_task(design: Design, factor: str, rng: np.random.Generator, prior: float = 0.5) -> Bool[np.ndarray, "n"]:
    """A random label per carrier token of a factor, the same wherever it occurs; a share `prior` of tokens
    is True.

    UserError where the factor has no declared carriers: then there is no type to memorise.
    """
    _, tokens = np.unique(carrier_tokens(design, factor), return_inverse=True)
    n = tokens.max() + 1
    return (rng.permutation(n) < min(max(round(prior * n), 1), n - 1))[tokens]


def _balanced(n_cells: int) -> Bool[np.ndarray, "N cells"]:
    """All labellings with as many True as False, cell 0 False: one of each complementary two."""
    chosen = np.array(list(itertools.combinations(range(1, n_cells), n_cells // 2)))
    every = np.zeros((len(chosen), n_cells), bool)
    np.put_along_axis(every, chosen, True, axis=1)
    return every


def _walked(columns: Int[np.ndarray, "cells F"], count: int, rng: np.random.Generator) -> Bool[np.ndarray, "N cells"]:
    n_cells = len(columns)
    found: dict[bytes, np.ndarray] = {}
    for _ in range(20):
        known = len(found)
        half = np.repeat([1, -1], n_cells // 2)
        labels = rng.permuted(np.broadcast_to(half, (max(4 * count, 256), n_cells)), axis=1)
        chains = np.arange(len(labels))
        correlation = labels @ columns
        for _ in range(200 * n_cells):
            open_ = chains[correlation.any(axis=1)]
            if not len(open_):
                break
            i, j = rng.integers(0, n_cells, (2, len(open_)))
            change = (labels[open_, j] - labels[open_, i])[:, None] * (columns[i] - columns[j])
            cost, new = (
                (correlation[open_] ** 2).sum(axis=1),
                ((correlation[open_] + change) ** 2).sum(axis=1),
            )
            # Now and then uphill, or a chain stays where no single swap helps.
            taken = (new <= cost) | (rng.random(len(open_)) < 0.02)
            a, i, j = open_[taken], i[taken], j[taken]
            labels[a, i], labels[a, j] = labels[a, j], labels[a, i]
            correlation[a] += change[taken]
        for row in labels[~correlation.any(axis=1)]:
            row = row * -row[0] == 1
            found.setdefault(row.tobytes(), row)
        if len(found) >= count or len(found) == known:
            break
    return np.array(list(found.values())[:count], bool).reshape(-1, n_cells)
