"""Directions along which a feature can be steered, all from the training texts' residual vectors at one site.

With x the residual vector of a text, y = ±1 its label, μ₊ and μ₋ the class means, every recipe gives one vector v that
points to True; `scaled` makes all of them as long as μ₊ − μ₋, so that a coefficient of 1 is one swap of the means.

    diff_mean           mean over minimal pairs of x₊ − x₋ at the site's own token: contrastive activation addition
                        (Rimsky et al. 2024, arXiv:2312.06681, sec. 3), and Hoagy's averaged difference vector. Equals
                        mass_mean where every item has every combination of the features, and only there
    actadd_1_aligned, …  ActAdd (Turner et al. 2023, arXiv:2308.10248, algorithm 1): the difference of n prompt pairs.
                        Aligned pairs differ in the feature alone, so their tokens correspond; misaligned ones differ in
                        everything (label True of one item against label False of another). Where it is added (front, last,
                        all) is the intervention's business; at the front, `front` gives one vector for each token
    mass_mean           μ₊ − μ₋ (Marks and Tegmark 2024, arXiv:2310.06824, sec. 5)
    lda                 Σ⁻¹(μ₊ − μ₋), Fisher's discriminant (the same section: the i.i.d. version of mass-mean)
    logistic            weights of the L2 logistic probe (the reference probe)
    surgical_pinv       column of the pseudo-inverse of W, whose rows are the logistic probes of all features: what moves
                        one probe and no other (the comment by J. Mendel on "What's up with LLMs representing XORs of
                        arbitrary features?", https://www.lesswrong.com/posts/hjJXCn9GsskysDceS)
    surgical_regressed  coefficient of y in the least-squares regression of x on all features: DiffMean with the other
                        features regressed out
    leace               Σ_xz, the direction in which LEACE moves x (Belrose et al. 2023, arXiv:2306.03819, theorem 4.3). It
                        moves each text by its own amount, so as an intervention it is an affine map (`leace`); erased at
                        coefficient 1/2 and reflected to the counterfactual at 1
    gradient            mean gradient of the read-out's log-odds with respect to x
    pc1, pc2, …         principal components of x
    ica                 mixing column of FastICA (Hyvärinen 1999, doi:10.1109/72.761722) whose source follows y best

Rows of a dictionary's decoder, or any other vectors, enter through `Material.dictionary`: each becomes `row_NAME`
(`row_sae`, `row_ica`: module `dictionary_rows`).

Pitfalls. surgical_pinv has no off-target effect on the probes it is made of by algebra: judge it by behaviour, or by
probes of other texts. A probe's weights say what to read, not what to write: for x = Σ f_i v_i with independent v_i the
least-squares probe of i is orthogonal to every other v_j, and the vector that changes f_i alone is v_i itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from counterprobe import probes
from counterprobe.progress import UserError

# A difference of means this much shorter than a text's own vector is rounding.
ZERO = 1e-6
ICA_COMPONENTS = 16
ICA_ITERATIONS = 300


class Excluded(UserError):
    """A direction that cannot be made from this material; the message is the reason that the table gives."""


@dataclass(frozen=True)
class Material:
    """What directions are made from. Rows are training texts at one site.

    features: every feature of the design by name, the steered one among them. pairs: (True, False) texts that differ in
    the steered feature alone. gradient: of the read-out, None where there is none. dictionary: rows to be tried as well.
    """

    x: Float[np.ndarray, "n d"]
    target: str
    features: Mapping[str, Bool[np.ndarray, " n"]]
    pairs: Int[np.ndarray, "p 2"]
    penalty: float
    seed: int
    gradient: Float[np.ndarray, " d"] | None = None
    dictionary: Mapping[str, Float[np.ndarray, " d"]] = field(default_factory=dict)

    @property
    def labels(self) -> Bool[np.ndarray, " n"]:
        return self.features[self.target]


@dataclass(frozen=True)
class Affine:
    """x ↦ x − 2 c P (x − μ): nothing at c = 0, LEACE's erasure at 1/2, the reflection to the counterfactual at 1."""

    projection: Float[np.ndarray, "d d"]
    mean: Float[np.ndarray, " d"]


Recipe = Callable[[Material], Float[np.ndarray, " d"]]


def make(name: str, material: Material) -> Float[np.ndarray, " d"]:
    """The direction of that name, towards True, as long as μ₊ − μ₋. Raises Excluded with the reason, UserError for a name
    that is none."""
    recipe, *arguments = _recipe(name)
    vector = np.asarray(recipe(material, *arguments), dtype=np.float64)
    if not np.isfinite(vector).all() or np.linalg.norm(vector) <= ZERO * _typical(material.x):
        raise Excluded("the direction has norm zero")
    return scaled(vector, material)


def names(requested: Sequence[str], dictionary: Mapping[str, object] | None = None) -> list[str]:
    """The names, checked, and those of the dictionary's rows."""
    for name in requested:
        _recipe(name)
    return [*requested, *(f"row_{row}" for row in dictionary or {})]


def scaled(vector: Float[np.ndarray, " d"], material: Material) -> Float[np.ndarray, " d"]:
    """As long as μ₊ − μ₋. Raises Excluded where the means do not differ."""
    length = np.linalg.norm(mass_mean(material))
    if length <= ZERO * _typical(material.x):
        raise Excluded("the class means do not differ here")
    return vector * (length / np.linalg.norm(vector))


def diff_mean(material: Material) -> Float[np.ndarray, " d"]:
    """Mean difference of minimal pairs."""
    return _paired(material, material.pairs)


def actadd(material: Material, n: str, alignment: str) -> Float[np.ndarray, " d"]:
    """Mean difference of n pairs, drawn by the seed."""
    return _paired(material, chosen_pairs(material, int(n), alignment == "aligned"))


def chosen_pairs(material: Material, n: int, aligned: bool) -> Int[np.ndarray, "n 2"]:
    """Pairs of an ActAdd vector: minimal ones, or a True text against the False text of another pair."""
    rng = np.random.default_rng([material.seed, n])
    if len(material.pairs) < max(n, 2):
        raise Excluded(f"{len(material.pairs)} minimal pairs, {max(n, 2)} are needed")
    drawn = material.pairs[rng.permutation(len(material.pairs))]
    if not aligned:
        drawn = np.stack([drawn[:, 0], np.roll(drawn[:, 1], 1)], axis=1)
    return drawn[:n]


def front(tokens: Float[np.ndarray, "p 2 t d"]) -> Float[np.ndarray, "t d"]:
    """ActAdd's own vector: the difference of the pairs' prompts at each of their first t tokens, mean over pairs."""
    return (tokens[:, 0] - tokens[:, 1]).mean(axis=0)


def mass_mean(material: Material) -> Float[np.ndarray, " d"]:
    """μ₊ − μ₋."""
    return material.x[material.labels].mean(axis=0) - material.x[~material.labels].mean(axis=0)


def lda(material: Material) -> Float[np.ndarray, " d"]:
    """Fisher's discriminant."""
    return _column(probes.lda(torch.as_tensor(material.x), torch.as_tensor(material.labels[:, None])))


def logistic(material: Material) -> Float[np.ndarray, " d"]:
    """Weights of the reference probe in raw units."""
    labels = torch.as_tensor(material.labels[:, None])
    return _column(probes.logistic(torch.as_tensor(material.x), labels, material.penalty))


def surgical_pinv(material: Material) -> Float[np.ndarray, " d"]:
    """Column of pinv(W): moves the steered feature's probe and none of the others."""
    known = _varying(material)
    labels = torch.as_tensor(np.stack(list(known.values()), axis=1))
    fitted = probes.logistic(torch.as_tensor(material.x), labels, material.penalty)
    return np.linalg.pinv(fitted.directions.numpy().T)[:, list(known).index(material.target)]


def surgical_regressed(material: Material) -> Float[np.ndarray, " d"]:
    """Least squares of x on the ±1 features and a constant."""
    known = _varying(material)
    signs = np.stack([np.ones(len(material.x)), *(np.where(labels, 1.0, -1.0) for labels in known.values())], axis=1)
    coefficients = np.linalg.lstsq(signs, material.x, rcond=None)[0]
    return 2 * coefficients[1 + list(known).index(material.target)]


def leace_direction(material: Material) -> Float[np.ndarray, " d"]:
    """Σ_xz towards True, which is proportional to μ₊ − μ₋ for one binary feature."""
    return mass_mean(material)


def leace(material: Material) -> Affine:
    """LEACE's eraser of the steered feature by the concept-erasure package, float64."""
    from concept_erasure import LeaceFitter

    fitted = LeaceFitter.fit(torch.as_tensor(material.x), torch.as_tensor(material.labels).double()[:, None]).eraser
    return Affine((fitted.proj_left @ fitted.proj_right).numpy(), fitted.bias.numpy())


def gradient(material: Material) -> Float[np.ndarray, " d"]:
    """As it was given."""
    if material.gradient is None:
        raise Excluded("there is no read-out to differentiate")
    return material.gradient


def principal(material: Material, number: str) -> Float[np.ndarray, " d"]:
    """Principal component of that number, from 1, its sign towards True."""
    centred = material.x - material.x.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2]
    if not 1 <= int(number) <= len(components):
        raise Excluded(f"there are {len(components)} principal components")
    vector = components[int(number) - 1]
    return vector * np.sign(vector @ mass_mean(material) or 1.0)


def ica(material: Material) -> Float[np.ndarray, " d"]:
    """Mixing column of the independent component that correlates with the feature most."""
    import warnings

    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    count = min(ICA_COMPONENTS, material.x.shape[1], len(material.x) - 1)
    model = FastICA(count, whiten="unit-variance", max_iter=ICA_ITERATIONS, random_state=material.seed)
    with warnings.catch_warnings():
        # One slow component among sixteen says nothing about the one that is taken.
        warnings.simplefilter("ignore", ConvergenceWarning)
        sources = model.fit_transform(material.x)
    along = (sources * np.where(material.labels, 1.0, -1.0)[:, None]).mean(axis=0)
    best = int(np.argmax(np.abs(along)))
    return model.mixing_[:, best] * np.sign(along[best] or 1.0)


def dictionary_row(material: Material, name: str) -> Float[np.ndarray, " d"]:
    """One of the rows that were given, its sign towards True."""
    if name not in material.dictionary:
        raise Excluded(
            f"there is no dictionary row {name!r} here; there are {', '.join(material.dictionary) or 'none'}"
        )
    row = np.asarray(material.dictionary[name], dtype=np.float64)
    return row * np.sign(row @ mass_mean(material) or 1.0)


# Pattern of the name, recipe; what the pattern's groups hold is handed on.
REGISTRY: tuple[tuple[str, Callable[..., Float[np.ndarray, " d"]]], ...] = (
    ("diff_mean", diff_mean),
    (r"actadd_(\d+)_(aligned|misaligned)", actadd),
    ("mass_mean", mass_mean),
    ("lda", lda),
    ("logistic", logistic),
    ("surgical_pinv", surgical_pinv),
    ("surgical_regressed", surgical_regressed),
    ("leace", leace_direction),
    ("gradient", gradient),
    (r"pc(\d+)", principal),
    ("ica", ica),
    (r"row_(.+)", dictionary_row),
)
LEACE = "leace"


def minimal_pairs(
    items: Int[np.ndarray, " n"], features: Mapping[str, Bool[np.ndarray, " n"]], target: str
) -> Int[np.ndarray, "p 2"]:
    """(True, False) texts of one item that agree in every feature but the target; the first of each where there are more.

    `features` are the design's own factors; a target that is a parity of some of them is changed by the last of these.
    """
    parts = target.split("^")
    fixed = [name for name in features if name != parts[-1]]
    keys = np.stack([items, *(features[name].astype(np.int64) for name in fixed)], axis=1)
    label = np.logical_xor.reduce([features[name] for name in parts])
    first: dict[tuple, list[int]] = {}
    for row, key in enumerate(map(tuple, keys.tolist())):
        pair = first.setdefault(key, [-1, -1])
        side = 0 if label[row] else 1
        if pair[side] < 0:
            pair[side] = row
    found = [pair for pair in first.values() if min(pair) >= 0]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _recipe(name: str) -> tuple:
    for pattern, recipe in REGISTRY:
        found = re.fullmatch(pattern, name)
        if found:
            return recipe, *found.groups()
    raise UserError(f"steering.directions: there is no direction {name!r}; see the module directions for their names")


def _paired(material: Material, pairs: Int[np.ndarray, "p 2"]) -> Float[np.ndarray, " d"]:
    if not len(pairs):
        raise Excluded("no two texts differ in this feature alone")
    return (material.x[pairs[:, 0]] - material.x[pairs[:, 1]]).mean(axis=0)


def _varying(material: Material) -> dict[str, Bool[np.ndarray, " n"]]:
    return {name: labels for name, labels in material.features.items() if 0 < labels.sum() < len(labels)}


def _column(probe: probes.LinearProbe) -> Float[np.ndarray, " d"]:
    return probe.directions[:, 0].cpu().numpy()


def _typical(x: Float[np.ndarray, "n d"]) -> float:
    return float(np.sqrt((x**2).sum(axis=1).mean())) or 1.0
