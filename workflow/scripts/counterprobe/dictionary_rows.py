"""Rows of a dictionary's decoder to steer along: of each kind, the latent that tells a feature best.

A latent's selectivity for a feature is the AUROC of its code over texts, |AUROC − ½| the largest; the row points to True,
so it is turned where the code is larger for False. Of ICA the row is a mixing column (`dictionaries`). Dictionaries of one
kind and several sizes or sparsities are one pool; the first seed speaks for all.

Pitfall: a dictionary is learned without labels, and may have seen the texts that are reported; which latent is taken has
not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from counterprobe.detection import auroc
from counterprobe.dictionaries import Dictionary
from counterprobe.dictionary_fitting import DESIGN, Fitted

KINDS = ("sae", "ica")


def at_layer(fitted: Sequence[Fitted], layer: int) -> dict[str, list[Dictionary]]:
    """Kind -> dictionaries of the design's own texts at this layer, first seed."""
    found: dict[str, list[Dictionary]] = {}
    for one in fitted:
        kind = one.dictionary.name
        if one.layer == layer and one.inputs == DESIGN and kind in KINDS and one.dictionary.seed == 0:
            found.setdefault(kind, []).append(one.dictionary)
    return found


def most_selective(
    pools: Mapping[str, Sequence[Dictionary]], x: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"]
) -> dict[str, Float[np.ndarray, " d"]]:
    """The row of every kind; a kind of which no latent is selective at all is left out."""
    rows = {}
    for kind, pool in pools.items():
        best, row = 0.0, None
        for dictionary in pool:
            found = selectivity(dictionary, x, labels)
            latent = int(np.argmax(np.abs(found)))
            if abs(found[latent]) > best:
                best, row = abs(found[latent]), dictionary.decoder[latent].double().numpy() * np.sign(found[latent])
        if row is not None:
            rows[kind] = row
    return rows


def selectivity(
    dictionary: Dictionary, x: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " h"]:
    """AUROC − ½ of every latent's code."""
    codes = dictionary.encode(torch.as_tensor(x, dtype=torch.float32)).double().numpy()
    found = np.zeros(dictionary.size)
    for latent in np.flatnonzero((codes != 0).any(axis=0)):
        found[latent] = auroc(codes[:, latent], labels) - 0.5
    return found
