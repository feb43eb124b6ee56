"""Probes as read-outs of what was steered: what is still there to be read, where nothing that is said depends on it.

For texts that are divided into folds, x the residual vectors after the last block, undisturbed: the L2 logistic probe of
each feature is trained on the other folds of the same half, and reads the texts of its own fold, steered or not. So it
has seen neither these items and carriers nor, in the half that is reported, the texts that directions were made of. A
direction of pinv(W), which moves no other probe of its W by algebra, has nothing to gain from it.

A probe tells a class only where it can read it: `excluded` has the reason of every feature that it reads on less than
`READABLE` of the undisturbed texts, classes weighed equally.

Pitfalls. A probe is no behaviour: a direction can hide a feature from it that the model goes on using, and the reverse
(Ravichander, Belinkov and Hovy 2021, arXiv:2005.00719). Steering at the last block's output moves it by w·v, whatever v is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from counterprobe import probes

READABLE = 0.75


@dataclass(frozen=True)
class HeldOutProbes:
    """Probes of the features `names`, one set a fold; fold_of[i] is the set that reads text i, −1 where none does.

    accuracy: of each, balanced, on the undisturbed texts it reads. excluded: feature -> why it is not read.
    """

    names: tuple[str, ...]
    directions: Float[np.ndarray, "folds d F"]
    intercepts: Float[np.ndarray, "folds F"]
    fold_of: Int[np.ndarray, " n"]
    accuracy: Mapping[str, float]
    excluded: Mapping[str, str]

    def logits(self, x: Float[np.ndarray, "*D b d"], texts: Int[np.ndarray, " b"]) -> Float[np.ndarray, "*D b F"]:
        """What each text's own probes read in these vectors of the texts of those numbers."""
        sets = self.fold_of[texts]
        return np.einsum("...bd,bdf->...bf", x, self.directions[sets]) + self.intercepts[sets]


def cross_fitted(
    x: Float[np.ndarray, "m d"],
    features: Mapping[str, Bool[np.ndarray, " n"]],
    fold_of: Int[np.ndarray, " n"],
    penalty: float,
) -> HeldOutProbes:
    """Probes of every feature for the m texts whose fold is not −1, in the order in which they stand."""
    half = np.flatnonzero(fold_of >= 0)
    folds, sets = np.unique(fold_of[half], return_inverse=True)
    set_of = np.full(len(fold_of), -1)
    set_of[half] = sets
    excluded, names = {}, []
    for name, labels in features.items():
        missing = [k for k in range(len(folds)) if len(np.unique(labels[half][sets != k])) < 2]
        if missing:
            excluded[name] = "the other folds of its half do not have both classes: no probe can be trained"
        else:
            names.append(name)
    labels = np.stack([features[name][half] for name in names], axis=1) if names else np.zeros((len(half), 0), bool)
    directions, intercepts = np.zeros((len(folds), x.shape[1], len(names))), np.zeros((len(folds), len(names)))
    for k in range(len(folds) if names else 0):
        others = sets != k
        fitted = probes.logistic(torch.as_tensor(x[others]), torch.as_tensor(labels[others]), penalty)
        directions[k], intercepts[k] = fitted.directions.numpy(), fitted.intercepts.numpy()
    found = HeldOutProbes(tuple(names), directions, intercepts, set_of, {}, {})
    right = (found.logits(x, half) > 0) == labels
    accuracy = {name: _balanced(right[:, column], labels[:, column]) for column, name in enumerate(names)}
    readable = [column for column, name in enumerate(names) if accuracy[name] >= READABLE]
    for name in names:
        if accuracy[name] < READABLE:
            excluded[name] = (
                f"a held-out probe reads {accuracy[name]:.3f} of the undisturbed texts, {READABLE} is needed"
            )
    return HeldOutProbes(
        tuple(names[column] for column in readable),
        directions[:, :, readable],
        intercepts[:, readable],
        set_of,
        accuracy,
        excluded,
    )


def _balanced(right: Bool[np.ndarray, " m"], labels: Bool[np.ndarray, " m"]) -> float:
    return float((right[labels].mean() + right[~labels].mean()) / 2)
