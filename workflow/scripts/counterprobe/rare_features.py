"""Which of many sparse features a dictionary finds, by how often they occur and how much data there is (claim C23).

Features are random unit directions, more of them than dimensions; feature i is on in a share p_i of the rows, independently,
with p log-uniform between two ends, and its size is uniform on [0.5, 1.5]. A feature is found if some decoder direction has
a |cosine| above .9 with it. Cunningham et al. 2023 (arXiv 2309.08600) note that ICA cannot learn an overcomplete basis and
so has no way of learning rare features: it has as many directions as dimensions, and more rows do not change that. An SAE
has room for all, and what it lacks of the rare ones is data: an n-fold sample is an n-fold number of occurrences.

Both see the same rows. The SAE makes the same number of steps whatever their number, so that what differs between two
numbers of rows is what there was to be seen, not how long was looked.

Pitfall: a feature that is on in fewer rows than there are live latents allowed (k) is still seen as part of an error only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import dictionaries, dictionary_training, streaming_ica
from counterprobe.dictionary_training import Recipe, Schedule

FOUND = 0.9
ROWS_AT_A_TIME = 16384


@dataclass(frozen=True)
class Setting:
    """features in width dimensions, on in between `often` and `rarely` of the rows; an SAE of `size` latents."""

    features: int = 256
    width: int = 64
    often: float = 0.05
    rarely: float = 0.0005
    size: int = 512
    steps: int = 2000
    batch: int = 512

    @property
    def frequencies(self) -> Float[np.ndarray, " m"]:
        """Descending."""
        return np.geomspace(self.often, self.rarely, self.features)


def planted(setting: Setting, rows: int, *, seed: int) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n d"]]:
    """(directions, rows). More rows with one seed begin with the fewer, in multiples of ROWS_AT_A_TIME."""
    directions = dictionaries.unit_rows(setting.features, setting.width, seed)
    shares = torch.from_numpy(setting.frequencies).float()
    generator = torch.Generator().manual_seed(seed + 1)
    made = []
    for start in range(0, rows, ROWS_AT_A_TIME):
        shape = (ROWS_AT_A_TIME, setting.features)
        sizes = (torch.rand(shape, generator=generator) < shares) * (0.5 + torch.rand(shape, generator=generator))
        made.append((sizes @ directions)[: rows - start])
    return directions, torch.cat(made)


def recall(setting: Setting, rows: Sequence[int], *, seed: int) -> pd.DataFrame:
    """One row for each number of rows, dictionary (sae, ica, random) and feature: its frequency, and whether it was found."""
    k = max(1, round(float(setting.frequencies.sum())))
    parts = []
    for count in rows:
        directions, x = planted(setting, count, seed=seed)
        schedule = Schedule(setting.steps, setting.batch)
        (sae,) = dictionary_training.train(x, [Recipe(setting.size, k, seed)], schedule, seed=seed).dictionaries
        ica = streaming_ica.fit(streaming_ica.chunked(x, ROWS_AT_A_TIME), seed=seed)
        decoders = {
            "sae": sae.decoder,
            "ica": ica.mixing.T,
            "random": dictionaries.unit_rows(setting.size, setting.width, seed + 2),
        }
        for name, decoder in decoders.items():
            found = dictionary_training.recovered(decoder, directions, FOUND).numpy()
            about = {"rows": count, "dictionary": name, "frequency": setting.frequencies, "found": found}
            parts.append(pd.DataFrame(about))
    return pd.concat(parts, ignore_index=True)


def by_rarity(table: pd.DataFrame, groups: int = 4) -> pd.DataFrame:
    """Share found, by dictionary and rows (index) and rarity (columns; 0 the most frequent, equally many features each)."""
    rank = (-table.frequency).rank(method="dense").sub(1)
    rarity = (rank * groups // (rank.max() + 1)).astype(int)
    return table.assign(rarity=rarity).pivot_table("found", ["dictionary", "rows"], "rarity", aggfunc="mean")
