"""How features lie in too few dimensions when they are learned, and when the data generator fixed them.

Toy model (Elhage et al. 2022, https://transformer-circuits.pub/2022/toy_model): m features, each 0 or uniform
on [0, 1], in d < m dimensions, W [d, m],

    x' = ReLU(Wᵀ W x + b),      loss = mean ‖x - x'‖².

    learned   W trained: sparse features share a dimension as antipodal pairs (x_i and x_j along +u and -u)
    fixed     unit Gaussian columns, as where a data generator fixes the directions; nothing is trained, and
              the number of pairs with cosine below -c is chance alone: m(m-1)/2 · ½ I_{1-c²}((d-1)/2, ½)

Data: `independent` features of a given density, or `exclusive` ones: pairs (2t, 2t + 1) of which at most one
is on.

    antipodal_pairs   pairs with cosine < -0.9 among features that are represented (norm at least half a unit)
    partners          share of antipodal pairs whose two features exclude each other (chance 1/(m-1));
                      exclusive data
    subspaces         groups of two or more represented features, connected components of the graph |cosine| >
                      0.15: the number of mutually orthogonal subspaces that features share (a tegum product
                      has many of them, Gaussian directions are one group as long as |cosine| > 0.15 is
                      common, d < 200 or so)

Pitfall: in few dimensions random directions are antipodal now and then, so the count has a chance level, and
it is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import sparse, special
from torch import Tensor

from counterprobe import superposition_cells, superposition_training
from counterprobe.superposition_cells import network_row

ANTIPODAL = -0.9
ORTHOGONAL = 0.15
REPRESENTED = 0.5


@dataclass(frozen=True)
class Cell:
    """One toy model: features, dimensions, probability of being on (at most 1/2 in exclusive data), data, learned or
    fixed, seed.
    """

    m: int
    d: int
    density: float
    data: str
    network: str
    seed: int

    def generator(self, purpose: int) -> torch.Generator:
        """Depends on what the model is, never on what it is trained beside; fixed directions are where
        learning starts.
        """
        exclusive = int(self.data == "exclusive")
        return superposition_training.generator(
            purpose, self.seed, self.m, self.d, round(1000 * self.density), exclusive
        )


def plan(spec: Mapping[str, Any]) -> list[Cell]:
    """Densities × kinds of data at the base size, and the sizes at one density; learned and fixed."""
    base = spec["base"]
    settings = [
        (base["m"], base["d"], _possible(float(density), data), data)
        for density in spec["densities"]
        for data in spec["data"]
    ]
    settings += [(m, d, float(base["density"]), "independent") for m, d in spec["sizes"]]
    return [
        Cell(*setting, network, seed)
        for setting in dict.fromkeys(settings)
        for network in ("learned", "fixed")
        for seed in range(spec["networks"])
    ]


def _possible(density: float, data: str) -> float:
    """Of two features that exclude each other, neither can be on more than half of the time."""
    return min(density, 0.5) if data == "exclusive" else density


def chance_of_antipodal(m: int, d: int) -> float:
    """Expected number of pairs of random directions with cosine below -0.9."""
    return m * (m - 1) / 2 * float(special.betainc((d - 1) / 2, 0.5, 1 - ANTIPODAL**2)) / 2


def cosines(weights: Float[Tensor, "d m"]) -> Float[np.ndarray, "k k"]:
    """Cosines between the columns whose norm is at least half of that of a unit feature."""
    norms = weights.norm(dim=0)
    kept = weights[:, norms >= REPRESENTED]
    unit = (kept / kept.norm(dim=0)).double().numpy()
    return unit.T @ unit


def antipodal_pairs(weights: Float[Tensor, "d m"]) -> list[tuple[int, int]]:
    """Indices (i < j) of represented features with cosine below -0.9."""
    names = np.flatnonzero((weights.norm(dim=0) >= REPRESENTED).numpy())
    first, second = np.nonzero(np.triu(cosines(weights) < ANTIPODAL, 1))
    return [(int(names[i]), int(names[j])) for i, j in zip(first, second, strict=True)]


def subspaces(weights: Float[Tensor, "d m"]) -> int:
    """Number of mutually orthogonal groups of at least two represented features."""
    _, groups = sparse.csgraph.connected_components(np.abs(cosines(weights)) > ORTHOGONAL, directed=False)
    return int((np.bincount(groups) > 1).sum())


def fixed_directions(cell: Cell) -> Float[Tensor, "d m"]:
    """Unit Gaussian columns."""
    directions = torch.randn(cell.d, cell.m, generator=cell.generator(51))
    return directions / directions.norm(dim=0)


def train(cells: Sequence[Cell], spec: Mapping[str, Any]) -> superposition_training.TrainedStack:
    """All learned toy models as one stack, padded to the largest m and d."""
    m, d = max(cell.m for cell in cells), max(cell.d for cell in cells)
    weights, exists = torch.zeros(len(cells), d, m), torch.zeros(len(cells), 1, m)
    for index, cell in enumerate(cells):
        weights[index, : cell.d, : cell.m] = fixed_directions(cell)
        exists[index, :, : cell.m] = 1.0
    generators = [cell.generator(52) for cell in cells]

    def draw(count: int) -> Float[Tensor, "steps N batch m"]:
        drawn = torch.zeros(count, len(cells), spec["batch"], m)
        for index, (cell, generator) in enumerate(zip(cells, generators, strict=True)):
            drawn[:, index, :, : cell.m] = features((count, spec["batch"]), cell, generator)
        return drawn

    def loss(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "N batch m"]) -> Float[Tensor, "N"]:
        inside = torch.bmm(inputs, parameters["weights"].transpose(1, 2))
        said = torch.relu(torch.baddbmm(parameters["biases"], inside, parameters["weights"]))
        return ((said - inputs).square() * exists).sum(dim=2).mean(dim=1)

    return superposition_training.train_stack(
        {"weights": weights, "biases": torch.zeros(len(cells), 1, m)},
        draw,
        loss,
        steps=spec["steps"],
        learning_rate=spec["learning_rate"],
    )


def features(shape: tuple[int, ...], cell: Cell, generator: torch.Generator) -> Float[Tensor, "*n m"]:
    """Random feature values of a cell's kind; each is on with probability `density`."""
    size = torch.rand(*shape, cell.m, generator=generator)
    if cell.data == "independent":
        return size * (torch.rand(*shape, cell.m, generator=generator) < cell.density)
    uniform = torch.rand(*shape, cell.m // 2, generator=generator)
    second = (uniform >= cell.density) & (uniform < 2 * cell.density)
    on = torch.stack((uniform < cell.density, second), dim=-1).flatten(-2)
    return size * on


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment, one a network and score.

    spec: base {m, d, density}, densities, data (independent, exclusive), sizes (list of [m, d]), networks,
    steps, batch, learning_rate.
    """
    cells = plan(spec)
    learned = [cell for cell in cells if cell.network == "learned"]
    trained = train(learned, spec)
    models = [
        (cell, trained.parameters["weights"][index, : cell.d, : cell.m], trained.reasons[index])
        for index, cell in enumerate(learned)
    ]
    models += [(cell, fixed_directions(cell), "") for cell in cells if cell.network == "fixed"]
    rows = []
    for cell, weights, reason in models:
        where = {"experiment": "geometry", "claim": "C18", "network": cell.network, "setting": cell.data}
        where |= {
            "m": cell.m,
            "d": cell.d,
            "s": cell.m * cell.density,
            "p": cell.density,
            "depth": 1,
            "seed": cell.seed,
        }
        scores = ["antipodal_pairs", "subspaces", "represented"]
        partnered = cell.data == "exclusive" and cell.network == "learned"
        if reason:
            scores += ["partners"] * partnered
            rows += [network_row(**where, score=score, reason=reason) for score in scores]
            continue
        pairs = antipodal_pairs(weights)
        fixed = cell.network == "fixed"
        values = {
            "antipodal_pairs": len(pairs),
            "subspaces": subspaces(weights),
            "represented": len(cosines(weights)),
        }
        chance = {"antipodal_pairs": chance_of_antipodal(cell.m, cell.d), "subspaces": 1.0}
        for score in scores:
            level = chance.get(score, float("nan"))
            predicted = level if fixed else float("nan")
            rows.append(network_row(**where, score=score, level=level, prediction=predicted, estimate=values[score]))
        if partnered:
            known: dict[str, Any] = {"reason": "no antipodal pair"}
            if pairs:
                known = {"estimate": float(np.mean([i // 2 == j // 2 for i, j in pairs]))}
            rows.append(network_row(**where, score="partners", level=1 / (cell.m - 1), **known))
    return superposition_cells.networks(rows)
