"""Universal AND and XOR from one ReLU layer: do random first layers do as well as trained ones?

The problem (U-AND, Vaintrob, Mendel and Haenni 2024, arXiv 2408.05451; U-XOR likewise): m boolean inputs of
which few are on, one layer z = ReLU(W x + b) of d neurons, and for EVERY pair of inputs an affine read-off
r·z + c of their AND. What counts is the error over sparse inputs, by its maximum and by its root mean square.

Read-offs:

    affine         on the inputs themselves. The minimax error is 1/4 for AND (x/2 + y/2 - 1/4) and 1/2 for
                   XOR: the values to beat, which a linear programme has to return to 1e-6
    least_squares  the affine read-off with the least mean square error over all inputs with at most s ones
    minimax        the affine read-off with the least maximal error over them: min e with |Z r + c - y| <= e
                   (HiGHS)
    cheapest       the least ‖r‖₁ with |Z r + c - y| <= a given e: what accuracy costs in sensitivity to
                   noise, and infeasible, with that as its reason, where the layer is too narrow for e
    indicator      Kaarel Haenni's argument for random weights: r_j depends on the signs of neuron j's two
                   weights alone, r_j = c[sign w_ja, sign w_jb] / d, and the four coefficients solve four
                   equations, that the expected output over Gaussian weights be right in each of the four
                   cells of the pair. Then the error is a mean of d independent terms with expectation 0, so
                   its root mean square is K(s)/√d, and K(s) comes from the same expectations
                   (`indicator_theory`): a prediction with nothing fitted
    indicator_fitted   the same four coefficients, solved for each network on half of its inputs

Where s varies between inputs, four expectations cannot be right for every s: a bias is left that no width
removes. That is why the slope of -1/2 is claimed, and measured, at a fixed number of active inputs; varying s
is shown beside it.

Losses (Mendel's experiment): first layer trained or frozen at its Gaussian initialisation, read-off trained,
mean of |error|^q over all pairs with q = 1, 2, 4, 8, with or without more weight on targets that are 1 ((1 -
f)/f for a share f of ones, so that ones and zeros weigh the same). ANDs of sparse inputs are mostly 0, and an
unweighted low q has its optimum at or near the zero output: `collapsed` is the share of pairs whose output
averages below 1/4 over inputs where it should be 1, `output_on_ones` that average itself.

Pitfalls: a ratio of two errors near 1 is no evidence where both layers fail, so errors are kept beside ratios
and a ratio is judged only where the trained layer beats the affine read-off. As many neurons as inputs
interpolate anything, which is no computation: such cells are excluded. The maximum of an indicator read-off is
over sampled pairs and inputs, so it can only grow with more of them; that of least squares and of the trained
networks is over all pairs and all sparse inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import optimize
from torch import Tensor

from counterprobe import superposition_cells, superposition_inputs, superposition_training
from counterprobe.superposition_cells import network_row

TARGETS = ("and", "xor")
CELL_VALUES = {"and": (0.0, 0.0, 0.0, 1.0), "xor": (0.0, 1.0, 1.0, 0.0)}
NEURONS_OF_THEORY = 1 << 19
WORST_CONDITION = 1e8
COLLAPSED_BELOW = 0.25
LP_STATUS = {1: "iteration limit", 2: "infeasible", 3: "unbounded", 4: "numerical difficulties"}


@dataclass(frozen=True)
class ReadOff:
    """Coefficients [d] and intercept of an affine read-off, its objective, or why there is none ('' =
    solved).
    """

    coefficients: Float[np.ndarray, "d"]
    intercept: float
    objective: float
    reason: str


@dataclass(frozen=True)
class IndicatorTheory:
    """Coefficients by sign pattern [4] (times 1/d), mean squared bias and mean variance per neuron over the
    cells.
    """

    coefficients: Float[np.ndarray, "4"]
    squared_bias: float
    variance: float

    def rms(self, d: int) -> float:
        """Expected root mean square error of a network of d neurons."""
        return float(np.sqrt(self.squared_bias + self.variance / d))


def minimax_readoff(features: Float[np.ndarray, "n d"], target: Float[np.ndarray, "n"]) -> ReadOff:
    """The affine read-off with the least maximal error over the rows; `objective` is that error."""
    n, d = features.shape
    affine = np.column_stack([features, np.ones(n)])
    error = np.ones((n, 1))
    return _solve(
        np.concatenate([np.zeros(d + 1), [1.0]]),
        np.block([[affine, -error], [-affine, -error]]),
        np.concatenate([target, -target]),
        [(None, None)] * (d + 1) + [(0, None)],
        np.eye(d + 1, d + 2),
        "",
    )


def cheapest_readoff(features: Float[np.ndarray, "n d"], target: Float[np.ndarray, "n"], error: float) -> ReadOff:
    """The affine read-off with the least ‖r‖₁ among those within `error` on every row; `objective` is that
    norm.
    """
    n, d = features.shape
    affine = np.column_stack([features, -features, np.ones(n)])
    split = np.zeros((d + 1, 2 * d + 1))
    split[:d, :d], split[:d, d : 2 * d], split[d, -1] = np.eye(d), -np.eye(d), 1.0
    return _solve(
        np.concatenate([np.ones(2 * d), [0.0]]),
        np.block([[affine], [-affine]]),
        np.concatenate([target + error, error - target]),
        [(0, None)] * (2 * d) + [(None, None)],
        split,
        f"no affine read-off is within {error:g} on every input",
    )


def least_squares_errors(features: Float[Tensor, "n d"], targets: Float[Tensor, "n pairs"]) -> Float[Tensor, "n pairs"]:
    """Errors of the least-squares affine read-offs of all targets at once, float64."""
    affine = torch.cat((features, torch.ones(len(features), 1)), dim=1).double()
    basis, _ = torch.linalg.qr(affine)
    return basis @ (basis.T @ targets.double()) - targets.double()


def indicator_theory(active: Sequence[int], target: str, seed: int = 0) -> IndicatorTheory:
    """Coefficients and error constant of the indicator read-off over standard Gaussian weights.

    `active`: the numbers of active inputs, equally likely. In a cell with a, b the other o = active - a - b
    active inputs add √o g to a neuron, g standard normal; 2^19 neurons stand for the expectation (constant
    good to .3%).
    """
    rng = np.random.default_rng([seed, *active])
    first, second, rest = rng.standard_normal((3, NEURONS_OF_THEORY))
    pattern = 2 * (first > 0) + (second > 0)
    wanted = np.array(CELL_VALUES[target])
    activations = {
        (count, cell): np.maximum(a * first + b * second + np.sqrt(count - a - b) * rest, 0)
        for count in active
        for cell, (a, b) in enumerate(product((0, 1), repeat=2))
    }
    means = {key: np.bincount(pattern, weights=z, minlength=4) / NEURONS_OF_THEORY for key, z in activations.items()}
    equations = np.stack([np.mean([means[count, cell] for count in active], axis=0) for cell in range(4)])
    coefficients = np.linalg.solve(equations, wanted)
    bias = [means[count, cell] @ coefficients - wanted[cell] for count, cell in activations]
    spread = [np.var(coefficients[pattern] * z) for z in activations.values()]
    return IndicatorTheory(coefficients, float(np.mean(np.square(bias))), float(np.mean(spread)))


def pattern_sums(
    weights: Float[Tensor, "d m"], pairs: Int[Tensor, "pairs 2"], inputs: Float[Tensor, "pairs 4 contexts m"]
) -> Float[Tensor, "pairs 4 contexts 4"]:
    """Mean over all neurons of z where the signs of a pair's two weights are --, -+, +-, ++, else of 0
    (float64).
    """
    hidden = torch.relu(inputs @ weights.T)
    pattern = 2 * (weights[:, pairs[:, 0]] > 0).long() + (weights[:, pairs[:, 1]] > 0).long()
    members = torch.nn.functional.one_hot(pattern.T, 4).float()
    return torch.einsum("pcnd,pds->pcns", hidden, members).double() / len(weights)


def indicator_errors(
    sums: Float[Tensor, "pairs 4 contexts 4"], target: str, coefficients: Float[np.ndarray, "4"] | None
) -> tuple[Float[Tensor, "pairs 4 scored"], str]:
    """Errors of the indicator read-off of every pair, and a reason where it cannot be fitted ('' = fine).

    `coefficients` None: they are solved for each pair on the first half of its contexts, and errors are those
    of the second half.
    """
    wanted = torch.tensor(CELL_VALUES[target], dtype=torch.float64)
    if coefficients is not None:
        return sums @ torch.from_numpy(coefficients) - wanted[None, :, None], ""
    half = sums.shape[2] // 2
    equations = sums[:, :, :half].mean(dim=2)
    # Where a pattern has no neuron the condition number is infinite, or no number at all.
    if not float(torch.linalg.cond(equations).max()) <= WORST_CONDITION:
        return sums[:, :, half:, 0] * torch.nan, "the four equations of the indicator read-off are singular"
    solved = torch.linalg.solve(equations, wanted.expand(len(sums), 4))
    return torch.einsum("pcns,ps->pcn", sums[:, :, half:], solved) - wanted[None, :, None], ""


def affine_rows() -> list[dict[str, object]]:
    """C42: exact minimax errors of affine read-offs of the inputs, on all of {0, 1}^3."""
    inputs = superposition_inputs.all_sparse(3, 3)
    pair = torch.tensor([[0, 1]])
    rows = []
    for target, exact in (("and", 0.25), ("xor", 0.5)):
        wanted = superposition_inputs.boolean_pairs(inputs, pair, target)[:, 0].numpy().astype(np.float64)
        fit = minimax_readoff(inputs.numpy().astype(np.float64), wanted)
        values: dict[str, object] = {"prediction": exact, "n_texts": len(inputs), "seed": 0}
        values |= {"reason": fit.reason} if fit.reason else {"estimate": fit.objective}
        rows.append(_row("C42", "affine", "minimax", target, 3, 0, 3.0, "max_error", **values))
    return rows


def indicator_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """C43: errors of the indicator read-offs against width, at a fixed number of active inputs and at varying
    ones.

    spec: m, widths, s (fixed numbers), varying (a list of numbers), pairs, contexts, networks.
    """
    m = spec["m"]
    kinds = [("fixed s", (s,)) for s in spec["s"]] + [("varying s", tuple(spec["varying"]))]
    theories = {(kind, target): indicator_theory(kind[1], target) for kind, target in product(kinds, TARGETS)}
    rows = []
    for d, seed in product(spec["widths"], range(spec["networks"])):
        generator = superposition_training.generator(11, seed, m, d)
        weights = torch.randn(d, m, generator=generator)
        pairs = superposition_inputs.random_pairs(m, spec["pairs"], generator)
        for kind in kinds:
            setting, active = kind
            counts = torch.tensor(active)[torch.arange(spec["contexts"]) % len(active)]
            sums = pattern_sums(weights, pairs, superposition_inputs.four_cells(m, pairs, counts, generator))
            for target, readout in product(TARGETS, ("indicator", "indicator_fitted")):
                theory = theories[kind, target]
                given = theory.coefficients if readout == "indicator" else None
                errors, reason = indicator_errors(sums, target, given)
                common: dict[str, Any] = {"seed": seed, "setting": setting, "n_texts": errors[0].numel()}
                s = float(np.mean(active))
                predicted = theory.rms(d) if readout == "indicator" else float("nan")
                if reason:
                    rows += [
                        _row("C43", "random", readout, target, m, d, s, score, **common, reason=reason)
                        for score in ("rms_error", "rms_error_root_d", "max_error")
                    ]
                    continue
                rms = float(errors.square().mean().sqrt())
                scores = {
                    "rms_error": (rms, predicted),
                    "rms_error_root_d": (rms * d**0.5, predicted * d**0.5),
                }
                scores["max_error"] = (float(errors.abs().max()), float("nan"))
                for score, (value, theirs) in scores.items():
                    numbers = {"estimate": value, "prediction": theirs}
                    rows.append(_row("C43", "random", readout, target, m, d, s, score, **common, **numbers))
    table = superposition_cells.networks(rows)
    errors_by_width = table[(table.score == "rms_error")].assign(estimate=lambda t: np.log(t.estimate))
    for _, group in errors_by_width.groupby(["setting", "s", "target", "readout"], sort=True):
        slope = superposition_cells.slopes(group, np.log(group.d.to_numpy()), {"d": -1}, score="log_slope")
        fixed = group.setting.iloc[0] == "fixed s"
        rows += [row | {"prediction": -0.5 if fixed else float("nan")} for row in slope]
    return rows


def readoff_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """Least-squares and minimax read-offs of a random layer, over ALL inputs with at most s ones.

    spec: least_squares: list of {m, d, s}; minimax: list of {m, d, s}, pairs (how many are solved); error (of
    the cheapest read-off); networks.
    """
    rows = []
    for kind in ("least_squares", "minimax"):
        for cell, seed in product(spec[kind], range(spec["networks"])):
            rows += _readoffs_of(kind, cell, seed, spec)
    table = superposition_cells.networks(rows)
    for score in ("max_error", "rms_error"):
        exact = table[(table.readout == "least_squares") & (table.score == score)]
        ratio = superposition_cells.paired(
            exact,
            "target",
            "xor",
            "and",
            lambda xor, conj: xor / conj,
            name="xor / and",
            score=f"{score}_ratio",
            level=1.0,
        )
        # XOR = x + y - 2 AND: twice the error of AND wherever x and y themselves are read without error.
        rows += [row | {"prediction": 2.0, "claim": ""} for row in ratio]
    return rows


def _readoffs_of(kind: str, cell: Mapping[str, Any], seed: int, spec: Mapping[str, Any]) -> list[dict[str, object]]:
    m, d, s = cell["m"], cell["d"], cell["s"]
    inputs = superposition_inputs.all_sparse(m, s)
    claim = "C42" if kind == "minimax" else ""
    where = {"seed": seed, "n_texts": len(inputs)}
    if d + 1 >= len(inputs):
        reason = f"interpolation: {d} neurons and an intercept fit any target on {len(inputs)} inputs"
        missing = [(claim, kind, "max_error", ""), ("", kind, "rms_error", "")]
        if kind == "minimax":
            missing = [missing[0], ("", "cheapest", "l1_norm", f"within {spec['error']:g}")]
        return [
            _row(of, "random", readout, target, m, d, float(s), score, **where, setting=setting, reason=reason)
            for target, (of, readout, score, setting) in product(TARGETS, missing)
        ]
    generator = superposition_training.generator(12, seed, m, d)
    hidden = torch.relu(inputs @ torch.randn(m, d, generator=generator))
    rows = []
    for target in TARGETS:
        if kind == "least_squares":
            pairs = superposition_inputs.all_pairs(m)
            errors = least_squares_errors(hidden, superposition_inputs.boolean_pairs(inputs, pairs, target))
            for score, value in (
                ("max_error", errors.abs().max()),
                ("rms_error", errors.square().mean().sqrt()),
            ):
                rows.append(_row(claim, "random", kind, target, m, d, float(s), score, **where, estimate=float(value)))
            continue
        pairs = superposition_inputs.random_pairs(m, spec["pairs"], superposition_training.generator(13, seed, m))
        wanted = superposition_inputs.boolean_pairs(inputs, pairs, target).numpy().astype(np.float64)
        features = hidden.numpy().astype(np.float64)
        least = [minimax_readoff(features, column) for column in wanted.T]
        cheap = [cheapest_readoff(features, column, spec["error"]) for column in wanted.T]
        setting = f"within {spec['error']:g}"
        rows.append(_worst("C42", least, "minimax", target, cell, "max_error", **where))
        rows.append(_worst("", cheap, "cheapest", target, cell, "l1_norm", setting=setting, **where))
    return rows


def loss_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """C41 and C44: trained against frozen random first layers, for every loss.

    spec: m, s, widths, norms, weightings, networks, steps, batch, learning_rate. All networks are one stack.
    """
    m, s = spec["m"], spec["s"]
    inputs = superposition_inputs.all_sparse(m, s)
    pairs = superposition_inputs.all_pairs(m)
    wanted = {target: superposition_inputs.boolean_pairs(inputs, pairs, target) for target in TARGETS}
    plan = list(
        product(
            spec["norms"],
            TARGETS,
            spec["weightings"],
            ("trained", "frozen"),
            spec["widths"],
            range(spec["networks"]),
        )
    )
    start = _initial_layers(plan, m, max(spec["widths"]), len(pairs))
    weight_of_ones = {target: float((1 - value.mean()) / value.mean()) for target, value in wanted.items()}
    ones = torch.tensor([weight_of_ones[cell[1]] if cell[2] == "weighted" else 1.0 for cell in plan]).view(-1, 1, 1)
    trained = superposition_training.train_stack(
        start,
        _minibatches(inputs, spec["batch"], m, s),
        _power_loss(plan, pairs, ones),
        steps=spec["steps"],
        learning_rate=spec["learning_rate"],
        frozen={name: [cell[3] == "frozen" for cell in plan] for name in ("weights", "biases")},
    )
    rows = []
    outputs = _outputs(trained.parameters, inputs)
    for index, (norm, target, weighting, network, d, seed) in enumerate(plan):
        setting = f"L{norm} {weighting}"
        where = {"seed": seed, "n_texts": len(inputs), "setting": setting}
        reason = trained.reasons[index]
        if not reason and not bool(torch.isfinite(outputs[index].double().pow(4).sum())):
            reason = "diverged: the outputs are not finite"
        if reason:
            for claim, score in (
                ("C41", "max_error"),
                ("C41", "l4_error"),
                ("C44", "collapsed"),
                ("C44", "output_on_ones"),
            ):
                rows.append(_row(claim, network, "trained", target, m, d, float(s), score, **where, reason=reason))
            continue
        error = outputs[index] - wanted[target]
        on_ones = (outputs[index] * wanted[target]).sum(dim=0) / wanted[target].sum(dim=0)
        scores = {
            ("C41", "max_error"): error.abs().max(),
            ("C41", "l4_error"): error.double().pow(4).mean().pow(0.25),
            ("C44", "collapsed"): (on_ones < COLLAPSED_BELOW).float().mean(),
            ("C44", "output_on_ones"): on_ones.mean(),
        }
        for (claim, score), value in scores.items():
            rows.append(_row(claim, network, "trained", target, m, d, float(s), score, **where, estimate=float(value)))
    table = superposition_cells.networks(rows)
    for score in ("max_error", "l4_error"):
        rows += superposition_cells.paired(
            table[table.score == score],
            "network",
            "frozen",
            "trained",
            lambda frozen, learned: frozen / learned,
            name="frozen / trained",
            score=f"{score}_ratio",
            level=1.0,
        )
    return rows


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment, one a network and score; spec has the sections affine, indicator,
    readoffs, losses.
    """
    rows = (
        affine_rows() + indicator_rows(spec["indicator"]) + readoff_rows(spec["readoffs"]) + loss_rows(spec["losses"])
    )
    return superposition_cells.networks(rows)


def _initial_layers(plan: Sequence[tuple], m: int, width: int, n_pairs: int) -> dict[str, Tensor]:
    """Gaussian first layers, the same for all networks of one width and seed; read-offs start at zero."""
    weights = torch.zeros(len(plan), m, width)
    for index, (*_, d, seed) in enumerate(plan):
        weights[index, :, :d] = torch.randn(m, d, generator=superposition_training.generator(14, seed, m, d))
    # A padded neuron has weights and read-off 0, so neither ever gets a gradient.
    return {
        "weights": weights,
        "biases": torch.zeros(len(plan), 1, width),
        "readoffs": torch.zeros(len(plan), width, n_pairs),
        "offsets": torch.zeros(len(plan), 1, n_pairs),
    }


def _outputs(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "n m"]) -> Float[Tensor, "networks n pairs"]:
    hidden = torch.relu(inputs @ parameters["weights"] + parameters["biases"])
    return torch.baddbmm(parameters["offsets"], hidden, parameters["readoffs"])


def _minibatches(inputs: Float[Tensor, "n m"], batch: int, m: int, s: int) -> Callable[[int], Tensor]:
    """The same minibatches for every network: seeds differ in the first layer, losses in nothing else."""
    generator = superposition_training.generator(15, m, s)

    def draw(count: int) -> Float[Tensor, "steps batch m"]:
        return inputs[torch.randint(len(inputs), (count, batch), generator=generator)]

    return draw


def _power_loss(
    plan: Sequence[tuple], pairs: Int[Tensor, "pairs 2"], ones: Float[Tensor, "networks 1 1"]
) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Weighted mean of |error|^q; networks of one q and target are neighbours in `plan`, so that slices are
    views.
    """
    starts = [i for i, cell in enumerate(plan) if not i or cell[:2] != plan[i - 1][:2]]
    blocks = [(plan[i][0], plan[i][1], slice(i, end)) for i, end in zip(starts, [*starts[1:], len(plan)], strict=True)]

    def loss(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "batch m"]) -> Float[Tensor, "networks"]:
        outputs = _outputs(parameters, inputs)
        parts = []
        for norm, target, block in blocks:
            wanted = superposition_inputs.boolean_pairs(inputs, pairs, target)
            weight = 1 + (ones[block] - 1) * wanted
            powers = _power(outputs[block] - wanted, norm) * weight
            parts.append(powers.sum(dim=(1, 2)) / weight.sum(dim=(1, 2)))
        return torch.cat(parts)

    return loss


def _power(error: Tensor, norm: int) -> Tensor:
    """|error|^norm; repeated squaring is several times faster than pow, and its gradient is exact at 0."""
    if norm == 1:
        return error.abs()
    if norm & (norm - 1):
        return error.abs().pow(norm)
    for _ in range(norm.bit_length() - 1):
        error = error.square()
    return error


def _solve(
    cost: np.ndarray,
    matrix: np.ndarray,
    bound: np.ndarray,
    bounds: list,
    recover: np.ndarray,
    infeasible: str,
) -> ReadOff:
    if not (np.isfinite(matrix).all() and np.isfinite(bound).all()):
        return _no_readoff(len(recover) - 1, "features or targets are not finite")
    result = optimize.linprog(cost, A_ub=matrix, b_ub=bound, bounds=bounds, method="highs")
    if result.status != 0:
        name = LP_STATUS.get(result.status, f"status {result.status}")
        return _no_readoff(
            len(recover) - 1, f"linear programme: {name}" + (f"; {infeasible}" if result.status == 2 else "")
        )
    solution = recover @ result.x
    return ReadOff(solution[:-1], float(solution[-1]), float(result.fun), "")


def _no_readoff(d: int, reason: str) -> ReadOff:
    return ReadOff(np.full(d, np.nan), float("nan"), float("nan"), reason)


def _worst(
    claim: str,
    fits: Sequence[ReadOff],
    readout: str,
    target: str,
    cell: Mapping[str, Any],
    score: str,
    **values: Any,
) -> dict[str, object]:
    """The largest objective over the pairs: universal means every pair, so one that cannot be read excludes
    all.
    """
    reasons = [fit.reason for fit in fits if fit.reason]
    m, d, s = cell["m"], cell["d"], float(cell["s"])
    if reasons:
        reason = f"{len(reasons)} of {len(fits)} pairs: {reasons[0]}"
        return _row(claim, "random", readout, target, m, d, s, score, **values, reason=reason)
    return _row(
        claim,
        "random",
        readout,
        target,
        m,
        d,
        s,
        score,
        **values,
        estimate=max(fit.objective for fit in fits),
    )


def _row(
    claim: str, network: str, readout: str, target: str, m: int, d: int, s: float, score: str, **values: Any
) -> dict[str, object]:
    factors = {
        "claim": claim,
        "network": network,
        "readout": readout,
        "target": target,
        "m": m,
        "d": d,
        "s": s,
    }
    return network_row(experiment="genericity", depth=1, score=score, **factors, **values)
