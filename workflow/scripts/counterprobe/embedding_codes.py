"""Sparse codes of the embedding matrix: are its rows sums of a few directions, more than any rows with their covariance are?

Each row of W_E, less the mean row, is coded as a combination of k of m unit atoms,

    FVU = Σ_t f_t ‖x_t − x̂_t‖² / Σ_t f_t ‖x_t‖²,

f_t the frequency of token t where the corpus is known, else 1. Codes are found by orthogonal matching pursuit (Pati et al.
1993), atoms and codes in turns by the method of optimal directions (Engan et al. 1999): D = argmin ‖√f (X − C D)‖, atoms of
length 1, an atom that nothing uses replaced by the row that is coded worst. Starts are m distinct rows.

Matrices that nobody trained stand beside (`embedding.controls`): the `matched_gaussian` has the covariance, so all that a
principal component analysis could use, and no directions of its own. As many atoms as rows code everything with k = 1
(`bound`: L. Mendel's trivial dictionary, claim C37), so m has to lie far below the vocabulary. Claim C36: "noise", if the
FVU at fixed k and m halves from the first to the last revision and ends below the matched Gaussian's; else structure.

Pitfalls: the matched Gaussian draws frequent tokens like all others, and where frequency weighs they are few. Dictionaries are
fitted and scored on the same rows: an FVU means something beside its nulls only. Intervals are over tokens with the dictionary
as found (linearised ratio). Alternating searches end in local minima, which differ by a factor of three: the best of `starts`
is kept, of equally many for every matrix.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

# Rows that are coded at once: their correlations with every atom are held.
ROWS_AT_ONCE = 4096
UNUSED = 1e-9


@dataclass(frozen=True)
class Code:
    """Unit atoms, which of them code each row, and with what coefficients."""

    atoms: Float[Tensor, "m d"]
    chosen: Int[Tensor, "V k"]
    coefficients: Float[Tensor, "V k"]

    def rows(self) -> Float[Tensor, "V d"]:
        """What the code says the rows are."""
        return (self.atoms[self.chosen] * self.coefficients[:, :, None]).sum(dim=1)


def pursue(
    x: Float[Tensor, "V d"], atoms: Float[Tensor, "m d"], k: int
) -> tuple[Int[Tensor, "V k"], Float[Tensor, "V k"]]:
    """Orthogonal matching pursuit of every row: the atom most correlated with what is left, then all coefficients anew."""
    chosen, coefficients = [], []
    gram = atoms @ atoms.T
    for rows in x.split(ROWS_AT_ONCE):
        towards = rows @ atoms.T
        left = towards.clone()
        taken = torch.zeros(len(rows), 0, dtype=torch.long, device=x.device)
        weights = torch.zeros(len(rows), 0, dtype=x.dtype, device=x.device)
        for _ in range(k):
            open_ = left.abs().scatter(1, taken, -1.0)
            taken = torch.cat([taken, open_.argmax(dim=1, keepdim=True)], dim=1)
            inner = gram[taken[:, :, None], taken[:, None, :]]
            # Atoms that coincide would make the system singular; a ridge of rounding size gives each a share.
            inner = inner + 1e-12 * torch.eye(inner.shape[1], dtype=x.dtype, device=x.device)
            weights = torch.linalg.solve(inner, towards.gather(1, taken)[:, :, None])[:, :, 0]
            left = towards - torch.einsum("vk,vkm->vm", weights, gram[taken])
        chosen.append(taken)
        coefficients.append(weights)
    return torch.cat(chosen), torch.cat(coefficients)


def learn(
    x: Float[Tensor, "V d"],
    frequency: Float[Tensor, " V"],
    m: int,
    k: int,
    iterations: int,
    generator: torch.Generator,
) -> Code:
    """m atoms and the k-sparse code of every row, by turns."""
    atoms = _unit(x[torch.randperm(len(x), generator=generator)[:m].to(x.device)])
    root = frequency.sqrt()[:, None]
    for _ in range(iterations):
        chosen, coefficients = pursue(x, atoms, k)
        codes = torch.zeros(len(x), m, dtype=x.dtype, device=x.device).scatter_add(1, chosen, coefficients)
        used = (root * codes).norm(dim=0) > UNUSED
        weighed = root * codes[:, used]
        # Normal equations, of the atoms' number and not the vocabulary's; least-norm, for atoms may always fire together.
        solved = torch.linalg.lstsq(weighed.T @ weighed, weighed.T @ (root * x), driver="gelsd").solution
        atoms = atoms.clone()
        atoms[used] = _unit(solved)
        missed = (root * (x - codes[:, used] @ solved)).square().sum(dim=1)
        worst = missed.argsort(descending=True, stable=True)[: int((~used).sum())]
        atoms[(~used).nonzero()[: len(worst), 0]] = _unit(x[worst])
    return Code(atoms, *pursue(x, atoms, k))


def best(
    x: Float[Tensor, "V d"], frequency: Float[Tensor, " V"], m: int, k: int, iterations: int, seeds: Iterable[int]
) -> Code:
    """The code of least error of those that `learn` ends in from several starts."""
    found = [learn(x, frequency, m, k, iterations, torch.Generator().manual_seed(seed)) for seed in seeds]
    return min(found, key=lambda code: unexplained(x, code.rows(), frequency)[0])


def unexplained(
    x: Float[Tensor, "V d"], coded: Float[Tensor, "V d"], frequency: Float[Tensor, " V"]
) -> tuple[float, float]:
    """FVU, and its standard error over tokens: of the linearised ratio of two means."""
    missed, whole = (x - coded).square().sum(dim=1), x.square().sum(dim=1)
    total = float((frequency * whole).sum())
    share = float((frequency * missed).sum()) / total
    return share, float((frequency * (missed - share * whole)).norm()) / total


def code_rows(
    matrix: Float[np.ndarray, "V d"],
    frequency: Float[np.ndarray, " V"],
    settings: Mapping[str, Any],
    confidence: float,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """FVU for every number of atoms (settings: multiples of the width, below the vocabulary) and k, and the bound."""
    x = torch.as_tensor(matrix, dtype=torch.float64)
    weight = torch.as_tensor(frequency, dtype=torch.float64)
    weight = weight / weight.sum()
    x = x - weight @ x
    z = special.ndtri((1 + confidence) / 2)
    row = {**site, "target": "sparse_code", "score": "fvu", "level": 1.0}
    row |= {"n_texts": len(x), "n_groups": int((weight > 0).sum())}
    for m in sorted({round(share * x.shape[1]) for share in settings["atoms"]}):
        for k in sorted(settings["k"]):
            if not k <= m < len(x):
                continue
            seeds = range(settings["seed"], settings["seed"] + settings["starts"])
            share, error = unexplained(x, best(x, weight, m, k, settings["iterations"], seeds).rows(), weight)
            ends = {"estimate": share, "lower": share - z * error, "upper": share + z * error}
            yield {**row, "probe": f"atoms_{m}_k_{k}", **ends}
    if len(x) <= ROWS_AT_ONCE:
        bound = Code(_unit(x), *pursue(x, _unit(x), 1))
        yield {**row, "probe": "bound", "estimate": unexplained(x, bound.rows(), weight)[0], "note": "an atom a token"}


def _unit(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
