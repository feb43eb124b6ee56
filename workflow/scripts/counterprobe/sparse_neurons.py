"""How few neurons tell a feature: probes on k neurons of one MLP, chosen on the training part.

Gurnee et al. 2023 ("Finding neurons in a haystack", arXiv 2305.01610): rank the neurons of a block by how they differ
between the classes on the training part, fit the reference probe on the first k, and score it on the texts held out. A score
that is high at k = 1 says that one neuron tells the feature; that rises with k says that it is spread. Rankings:

    mean_difference     |μ₁ − μ₀| of the activation
    f_statistic         between-class over within-class variance
    mutual_information  with the activation in 16 bins of equal count
    l1                  |coefficient| of a logistic regression with an L1 penalty, on standardised activations
    random              a random order, drawn for each feature and fold
    best                no ranking: k = 1 and 2 by exhaustive search, more by adding one neuron at a time, for the least
                        squared error of a linear fit. (The original's optimal probes need a commercial solver.)

`best` searches among the `candidates` neurons of largest mean difference. `dense` is the same probe on all neurons.

Controls: random balanced labellings of the same cells with their own rankings (`dichotomy`; selectivity is accuracy less
their mean, paired), and the same under the rungs of `neurons.rungs`, as rows of their own.

Pitfalls: neurons are chosen by linear fits and scored by a logistic probe, so `best` can lose to a ranking. One penalty (the
middle of the grid) serves all k: it matters for the dense probe only. A neuron that tells a feature need not be used for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe import (
    capacity,
    checkpoints,
    components,
    designs,
    extraction,
    language_model,
    probe_controls,
    probe_grid,
    probes,
    progress,
    tables,
    tokenization,
    weight_controls,
)
from counterprobe.designs import Design
from counterprobe.probe_grid import PUBLISHED, REFERENCE
from counterprobe.revisions import step_of
from counterprobe.splits import Fold

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BINS = 16
# Of the largest penalty at which any coefficient is not zero.
L1_SHARE = 0.05
L1_STEPS = 200
BEST, DENSE, CONTROLLED = "best", "dense", "mean_difference"


def measure(
    checkpoint: str | Path,
    design: Design,
    weights: str,
    spec: Mapping[str, Any],
    cell: Mapping[str, str],
    *,
    device: str,
) -> pd.DataFrame:
    """Accuracy by ranking and k for every MLP, at the primary position; dichotomies under trained weights only.

    spec: `neurons` (k, rankings, candidates, dichotomies, seeds, seed), `probes`, `statistics`, `activations.primary_*` and
    token_budget, `design` (protocols, unreadable). A rung is read with its embeddings kept, and its mean difference and best
    neurons only.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    settings, reading = spec["neurons"], spec["activations"]
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    protocols = probe_grid.testable(design, spec["design"]["protocols"], spec["probes"])
    chosen = next(((protocol, folds) for protocol, folds in protocols if protocol != PUBLISHED), None)
    if chosen is None:
        progress.logger("neurons").warning("%s: no protocol holds anything out; nothing is probed", design.name)
        return tables.frame([])
    protocol, folds = chosen
    trained = weights == extraction.TRAINED
    rows: list[dict[str, Any]] = []
    for seed in range(1 if trained else settings["seeds"]):
        model = language_model.load(source, device="cpu")
        if not trained:
            weight_controls.apply(model, weights, embeddings="kept", seed=seed)
        site = {
            **tables.NOT_APPLICABLE,
            **cell,
            "step": step_of(cell["revision"]),
            "seed": seed,
            "position": reading["primary_position"],
            "bos": reading["primary_bos"],
            "protocol": protocol,
            "representation": "neurons",
        }
        activations = of_texts(model.to(device), tokenizer, design, reading)
        for block, level in enumerate(activations):
            rows += block_rows(level, design, folds, spec, {**site, "layer": block + 1}, trained=trained)
    return tables.frame(rows)


def of_texts(
    model: "PreTrainedModel", tokenizer: Any, design: Design, reading: Mapping[str, Any]
) -> Iterator[Float[Tensor, "texts N"]]:
    """Activations of every block's neurons at the primary position."""
    texts = components.sequences(
        model,
        tokenizer,
        design,
        reading["primary_position"],
        bos=reading["primary_bos"],
        token_budget=reading["token_budget"],
    )
    readings = components.read(model, components.blocks_of(model), texts)
    return (level[texts.of_text].clone() for level in readings.neurons)


def block_rows(
    activations: Float[Tensor, "n N"],
    design: Design,
    folds: Sequence[Fold],
    spec: Mapping[str, Any],
    site: Mapping[str, Any],
    *,
    trained: bool,
) -> Iterator[dict[str, Any]]:
    """Every ranking and k of one MLP, and the dense probe."""
    settings, penalties = spec["neurons"], spec["probes"]["penalties"]
    penalty = penalties[len(penalties) // 2]
    names = capacity.targets(design)
    labels = np.stack([designs.parity(design, name) for name in names], axis=1)
    resampling = probe_grid.resample(design, names, spec["statistics"], spec["probes"]["seed"])
    fair = probe_controls.in_balance(labels, design)
    score = probe_controls.score_name(design)
    ks = sorted({k for k in settings["k"] if k < activations.shape[1]})
    rankings = (
        settings["rankings"] if trained else [name for name in settings["rankings"] if name in (CONTROLLED, BEST)]
    )
    found = sparse(activations, labels, folds, ks, rankings, penalty, settings)
    bare = [probe_controls.without_inner(fold) for fold in folds]
    found[DENSE, activations.shape[1]] = probe_grid.cross_validate(
        activations, labels, bare, [penalty], REFERENCE
    ).correct
    for (ranking, k), correct in found.items():
        row = {**site, "probe": describe(ranking, k), "score": score, "level": 0.5}
        yield from capacity.mean_rows(correct * fair, resampling, names, row)
    drawn = capacity.dichotomies(design, settings["dichotomies"], settings["seed"]) if trained else None
    if drawn is None or CONTROLLED not in rankings:
        return
    against = sparse(activations, drawn, folds, ks, [CONTROLLED], penalty, settings)
    note = f"{drawn.shape[1]} dichotomies with rankings of their own"
    for (ranking, k), correct in against.items():
        mean = correct.mean(axis=1, keepdims=True)
        row = {**site, "probe": describe(ranking, k), "control": "dichotomy", "note": note}
        repeated = np.repeat(mean, len(names), axis=1)
        yield from capacity.mean_rows(repeated, resampling, names, {**row, "score": "accuracy", "level": 0.5})
        left = found[ranking, k] * fair - mean
        yield from capacity.mean_rows(left, resampling, names, {**row, "score": "selectivity", "level": 0.0})


def describe(ranking: str, k: int) -> str:
    """`mean_difference_4` is a probe on the four neurons of largest mean difference."""
    return f"{ranking}_{k}"


def sparse(
    activations: Float[Tensor, "n N"],
    labels: Bool[np.ndarray, "n T"],
    folds: Sequence[Fold],
    ks: Sequence[int],
    rankings: Sequence[str],
    penalty: float,
    settings: Mapping[str, Any],
) -> dict[tuple[str, int], Float[np.ndarray, "n T"]]:
    """Right answers (0, ½, 1; NaN where never held out) of the reference probe on k neurons, by (ranking, k)."""
    y = torch.as_tensor(labels, device=activations.device)
    sums = {(ranking, k): np.zeros(labels.shape) for ranking in rankings for k in ks}
    count = np.zeros((len(labels), 1))
    for number, fold in enumerate(folds):
        x, inside = activations[fold.train], y[fold.train]
        test = activations[fold.test]
        rng = np.random.default_rng([settings["seed"], 3, number])
        orders = {ranking: order(ranking, x, inside, max(ks), settings["candidates"], rng) for ranking in rankings}
        for (ranking, k), total in sums.items():
            for target in range(labels.shape[1]):
                # A pair that is best together need not hold the neuron that is best alone.
                kept = orders[ranking][k][:, target] if ranking == BEST else orders[ranking][:k, target]
                probe = probe_grid.fit_probe(x[:, kept], inside[:, target : target + 1], REFERENCE, np.array([penalty]))
                scored = probes.score_texts(probe, test[:, kept], y[fold.test, target : target + 1])
                total[fold.test, target] += scored.correct[:, 0].cpu().numpy()
        count[fold.test] += 1
    with np.errstate(invalid="ignore"):
        return {key: total / np.where(count > 0, count, np.nan) for key, total in sums.items()}


def order(
    ranking: str,
    x: Float[Tensor, "n N"],
    labels: Bool[Tensor, "n T"],
    k: int,
    candidates: int,
    rng: np.random.Generator,
) -> Int[Tensor, "N T"] | dict[int, Int[Tensor, "k T"]]:
    """Neurons of every target from the most telling on; for `best` the chosen ones of each size up to k."""
    if ranking == BEST:
        return best(x, labels, k, candidates)
    if ranking == "random":
        return torch.as_tensor(rng.permuted(np.tile(np.arange(x.shape[1])[:, None], labels.shape[1]), axis=0))
    score = {
        "mean_difference": mean_difference,
        "f_statistic": f_statistic,
        "mutual_information": mutual_information,
        "l1": l1_coefficients,
    }[ranking](x, labels)
    return score.argsort(dim=0, descending=True, stable=True)


def mean_difference(x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"]) -> Float[Tensor, "N T"]:
    """|μ₁ − μ₀|."""
    return probes.mass_mean(x, labels).directions.abs()


def f_statistic(x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"]) -> Float[Tensor, "N T"]:
    """Analysis of variance with two classes: F = (n − 2) r² / (1 − r²); 0 for a neuron that is constant."""
    squared = _correlations(x, labels).square()
    return (len(x) - 2) * squared / (1 - squared).clamp(min=1e-12)


def mutual_information(x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"], bins: int = BINS) -> Float[Tensor, "N T"]:
    """In nats, of a label and the activation's bin; bins hold equally many texts, equal activations share one."""
    n = len(x)
    edges = x.sort(dim=0).values[torch.arange(1, bins) * n // bins]
    y = labels.double()
    priors = torch.stack([1 - y.mean(dim=0), y.mean(dim=0)])
    found = torch.zeros(x.shape[1], labels.shape[1], dtype=torch.float64, device=x.device)
    place = torch.searchsorted(edges.T.contiguous(), x.T.contiguous(), right=True).T
    for number in range(bins):
        inside = (place == number).double()
        share = inside.mean(dim=0)[:, None]
        positive = inside.T @ y / n
        for joint, prior in ((positive, priors[1]), (share - positive, priors[0])):
            expected = (share * prior).clamp(min=1e-300)
            found += torch.where(joint > 1e-12, joint * (joint.clamp(min=1e-300) / expected).log(), 0.0)
    return found


def l1_coefficients(
    x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"], share: float = L1_SHARE, steps: int = L1_STEPS
) -> Float[Tensor, "N T"]:
    """|w| of the minimum of mean log-loss + λ‖w‖₁ on standardised activations, λ = `share` of the largest that has any.

    FISTA with the step 4/‖X‖²/n (Beck and Teboulle 2009, SIAM Journal on Imaging Sciences 2:183), all targets at once.
    """
    z = probes.standardise(x).apply(x).double()
    n = len(z)
    y = labels.double()
    prior = y.mean(dim=0)
    penalty = share * (z.T @ (y - prior) / n).abs().amax(dim=0)
    step = 4 * n / torch.linalg.matrix_norm(z, 2) ** 2
    w = momentum = torch.zeros(z.shape[1], y.shape[1], dtype=z.dtype, device=z.device)
    b = offset = (prior / (1 - prior)).log()
    t = 1.0
    for _ in range(steps):
        error = torch.sigmoid(z @ momentum + offset) - y
        moved = momentum - step * (z.T @ error) / n
        new = moved.sign() * (moved.abs() - step * penalty).clamp(min=0)
        # The intercept has curvature 1/4 and no penalty; columns of z have mean 0, so the two hardly interact.
        level = offset - min(float(step), 4.0) * error.mean(dim=0)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        momentum, offset = new + (t - 1) / following * (new - w), level + (t - 1) / following * (level - b)
        w, b, t = new, level, following
    return w.abs()


def best(
    x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"], k: int, candidates: int
) -> dict[int, Int[Tensor, "k T"]]:
    """For every size up to k the neurons of least squared error: the best of all for 1 and 2, then one more at a time."""
    allowed = mean_difference(x, labels).argsort(dim=0, descending=True, stable=True)[:candidates]
    sizes: dict[int, list[Tensor]] = {}
    for target in range(labels.shape[1]):
        columns = allowed[:, target]
        z = x[:, columns].double()
        z = z - z.mean(dim=0)
        length = z.norm(dim=0)
        z = torch.where(length > 1e-9 * length.max(), z / length.clamp(min=1e-300), 0.0)
        y = labels[:, target].double()
        y = y - y.mean()
        y = y / y.norm()
        towards = z.T @ y
        sizes.setdefault(1, []).append(columns[towards.abs().argmax()][None])
        if k == 1:
            continue
        chosen = list(_best_pair(z, towards))
        sizes.setdefault(2, []).append(columns[chosen])
        left = z.clone()
        for _ in range(3, k + 1):
            # Gram-Schmidt against what was chosen last: what is left of each neuron, and of the label along it.
            for index in chosen[-2:] if len(chosen) == 2 else chosen[-1:]:
                axis = left[:, index] / left[:, index].norm().clamp(min=1e-300)
                left = left - axis[:, None] * (axis @ left)
                y = y - axis * (axis @ y)
            norms = left.norm(dim=0)
            gain = torch.where(norms > 1e-6, (left.T @ y).abs() / norms.clamp(min=1e-12), 0.0)
            gain[chosen] = -1.0
            chosen.append(int(gain.argmax()))
            sizes.setdefault(len(chosen), []).append(columns[chosen])
    return {size: torch.stack(parts, dim=1) for size, parts in sizes.items()}


def _best_pair(z: Float[Tensor, "n C"], towards: Float[Tensor, " C"]) -> tuple[int, int]:
    """The pair of unit columns whose span holds most of the label: R² = (a² + b² − 2abρ) / (1 − ρ²)."""
    gram = z.T @ z
    a, b = towards[:, None], towards[None]
    free = 1 - gram.square()
    explained = torch.where(free > 1e-9, (a * a + b * b - 2 * a * b * gram) / free.clamp(min=1e-9), 0.0)
    explained.fill_diagonal_(-1.0)
    first, second = divmod(int(explained.argmax()), len(towards))
    return first, second


def _correlations(x: Float[Tensor, "n N"], labels: Bool[Tensor, "n T"]) -> Float[Tensor, "N T"]:
    z, y = x.double(), labels.double()
    z, y = z - z.mean(dim=0), y - y.mean(dim=0)
    spread = z.norm(dim=0)[:, None] * y.norm(dim=0)
    return torch.where(spread > 1e-12, z.T @ y / spread.clamp(min=1e-12), 0.0)
