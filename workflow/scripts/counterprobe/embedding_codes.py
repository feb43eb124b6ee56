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

*Groups of atoms.* Features that live on a circle (Engels et al. 2024, arXiv 2405.14860) need several atoms of one plane. Every
atom with the three that point most nearly along its line is a group; x̂ restricted to it, centred, has singular values s and
lies r from the origin of its first two components:

    circularity = (s₂ / s₁) · (s₁² + s₂²) / Σ s² · (1 − sd(r) / mean(r)),      1 on a circle, 0 on a line

`circularity` is the largest over groups that code enough tokens; the matched Gaussian's says what that is by chance.

*The map.* Coordinates of the atoms of the smallest k above 1 on their first two principal components (`pc1`, `pc2`), each
named by the tokens of its largest coefficients; an atom's sign is the one in which it is used most.

Pitfalls: the matched Gaussian draws frequent tokens like all others, and where frequency weighs they are few. Dictionaries are
fitted and scored on the same rows: an FVU means something beside its nulls only. Intervals are over tokens with the dictionary
as found (linearised ratio). Alternating searches end in local minima, which differ by a factor of three: the best of `starts`
is kept, of equally many for every matrix.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
# Atoms of a group, and tokens that a group has to code before their shape says anything.
GROUP, TOKENS_OF_A_GROUP = 4, 12
# Tokens that name an atom of the map.
NAMED = 3


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


def circularity(points: Float[Tensor, "n d"]) -> float:
    """1 for points evenly on a circle, 0 for points on a line, about .48 for a Gaussian in a plane; see above."""
    left, s, _ = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    if len(s) < 2 or s[0] <= UNUSED:
        return 0.0
    radius = (left[:, :2] * s[:2]).norm(dim=1)
    even = 1 - radius.std(unbiased=False) / radius.mean()
    return float(s[1] / s[0] * s[:2].square().sum() / s.square().sum() * even.clamp(min=0))


def groups(
    code: Code, frequency: Float[Tensor, " V"]
) -> Iterator[tuple[Int[Tensor, " group"], Float[Tensor, "tokens d"]]]:
    """Every atom with its nearest ones, and what the group says of the tokens it codes (those that occur), where enough."""
    nearest = (code.atoms @ code.atoms.T).abs().argsort(dim=1, descending=True, stable=True)[:, :GROUP]
    for members in nearest:
        inside = torch.isin(code.chosen, members)
        coded = inside.any(dim=1) & (frequency > 0)
        if coded.sum() >= TOKENS_OF_A_GROUP:
            part = (code.coefficients * inside)[coded]
            yield members, (code.atoms[code.chosen[coded]] * part[:, :, None]).sum(dim=1)


def atom_map(
    code: Code, frequency: Float[Tensor, " V"], names: Sequence[str | None]
) -> Iterator[tuple[tuple[float, float], int, str]]:
    """Of every atom its place on the first two principal components of all, the tokens that use it, and its name."""
    counted = code.coefficients * (frequency > 0)[:, None]
    used = torch.zeros(len(code.atoms), dtype=counted.dtype).index_add(0, code.chosen.flatten(), counted.flatten())
    sign = torch.where(used < 0, -1.0, 1.0)
    atoms = code.atoms * sign[:, None]
    centred = atoms - atoms.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    # A component has no sign of its own: the coordinate furthest from the middle is positive.
    places = centred @ axes.T
    places = places * places.gather(0, places.abs().argmax(dim=0, keepdim=True)).sign()
    for atom, place in enumerate(places):
        tokens, columns = (code.chosen == atom).nonzero(as_tuple=True)
        known = torch.tensor([bool(names[token]) for token in tokens.tolist()], dtype=torch.bool)
        known = known & (frequency[tokens] > 0)
        tokens, columns = tokens[known], columns[known]
        order = (code.coefficients[tokens, columns] * sign[atom]).argsort(descending=True, stable=True)[:NAMED]
        yield (float(place[0]), float(place[-1])), len(tokens), ", ".join(str(names[t]) for t in tokens[order].tolist())


def code_rows(
    matrix: Float[np.ndarray, "V d"],
    frequency: Float[np.ndarray, " V"],
    settings: Mapping[str, Any],
    confidence: float,
    site: Mapping[str, Any],
    names: Sequence[str | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """FVU for every number of atoms (settings: multiples of the width, below the vocabulary) and k, and the bound.

    From k = 2 on the largest circularity of a group of atoms; where tokens have names, a map of the most atoms.
    """
    x = torch.as_tensor(matrix, dtype=torch.float64)
    weight = torch.as_tensor(frequency, dtype=torch.float64)
    weight = weight / weight.sum()
    x = x - weight @ x
    z = special.ndtri((1 + confidence) / 2)
    row = {**site, "target": "sparse_code", "score": "fvu", "level": 1.0}
    row |= {"n_texts": len(x), "n_groups": int((weight > 0).sum())}
    seeds = range(settings["seed"], settings["seed"] + settings["starts"])
    sizes = [m for m in sorted({round(share * x.shape[1]) for share in settings["atoms"]}) if m < len(x)]
    ks = sorted(settings["k"])
    shown = next((k for k in ks if k > 1), 0)
    for m in sizes:
        for k in (k for k in ks if k <= m):
            code = best(x, weight, m, k, settings["iterations"], seeds)
            share, error = unexplained(x, code.rows(), weight)
            ends = {"estimate": share, "lower": share - z * error, "upper": share + z * error}
            probe = f"atoms_{m}_k_{k}"
            yield {**row, "probe": probe, **ends}
            found = [circularity(points) for _, points in groups(code, weight)] if k > 1 else []
            if found:
                number = {"score": "circularity", "level": float("nan"), "estimate": max(found), "n_groups": len(found)}
                yield {**row, "probe": probe, **number}
            if names is not None and k == shown and m == sizes[-1]:
                for atom, (place, tokens, name) in enumerate(atom_map(code, weight, names)):
                    about = {"target": probe, "probe": f"atom_{atom:03}", "level": float("nan"), "note": name}
                    for axis, coordinate in enumerate(place, 1):
                        ends = {"score": f"pc{axis}", "estimate": coordinate, "n_texts": tokens, "n_groups": tokens}
                        yield {**row, **about, **ends}
    if len(x) <= ROWS_AT_ONCE:
        bound = Code(_unit(x), *pursue(x, _unit(x), 1))
        yield {**row, "probe": "bound", "estimate": unexplained(x, bound.rows(), weight)[0], "note": "an atom a token"}


def _unit(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
