"""How often the verdicts are wrong, and how small an effect they find: planted activations through the code of real ones.

Each draw is one model on one design, with background, interactions and noise of its own (`planted_activations`); its
verdict goes through `probe_grid.cross_validate`, `probe_controls.against_dichotomies`, `statistics` and `verdicts`, at the
middle penalty of the grid. What is counted are verdicts, before Holm's correction (one target, one model).

Null families break one leg each while the others hold:

    additive     nothing but main effects: not decodable
    look_ups     each name interacts with NOT in its own way: decodable where names are shared between training and test
                 (protocol items, shown beside), not where they are held out
    mixing       independent interactions of all orders: decodable, but one of many such labellings
    seeds        an XOR of random size in the trained model and in every seed of the control, one generator for all:
                 decodable and selective, but not learned
    orthogonal   an XOR that can be read, and a read-out orthogonal to its direction: not used
    unrelated    the same with a read-out in a direction of its own: orthogonal on average only

and power curves raise one effect from 0:

    decodable           ‖δ‖ in within-cell standard deviations, items held out
    decodable_carriers  the same, items and names held out
    learned             the same, on a background of interactions of all orders, against seeds that have the background only
    used                the share of the read-out's gap that passes through the direction

A power curve also shows the error of the equivalence verdicts: how often `absent` (`not used`) is said though the effect
lies beyond the margin. `effect_at_90` is the smallest effect with 90% power, by interpolation in the isotonic regression of
the rates on the effect; its interval is where the ends of the rates' own intervals (Clopper and Pearson 1934) cross 90%.

Pitfalls: dimensions are isotropic here, and those of a transformer are not; a rate of 5% of 1,000 draws lies between 3.7%
and 6.4% in 95 of 100 calibrations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from counterprobe import (
    coordinate_swaps,
    designs,
    planted_activations,
    probe_controls,
    probe_grid,
    progress,
    splits,
    statistics,
    tables,
    verdicts,
)
from counterprobe.designs import Design
from counterprobe.planted_activations import TARGET
from counterprobe.splits import Fold
from counterprobe.verdicts import Measured, ReadEvidence, UseEvidence

NULLS = ("additive", "look_ups", "mixing", "seeds", "orthogonal", "unrelated")
POWERS = ("decodable", "decodable_carriers", "learned", "used")
EXPERIMENTS = (*NULLS, *(f"power_{name}" for name in POWERS))
# Verdicts that are wrong in a family; a verdict that implies another is counted with it.
WRONG = {
    "additive": ("decodable", "learned"),
    "look_ups": ("decodable", "learned"),
    "mixing": ("learned",),
    "seeds": ("learned",),
    "orthogonal": ("used",),
    "unrelated": ("used",),
}
POWER = 0.9
# ‖v‖ of effects that are there beyond doubt, and of the interactions of all orders behind a learned one.
LARGE, MIXED = 2.5, 0.5
# Length of the part of a read-out that has nothing to do with the target, over what all of the gap would take.
UNRELATED_READING = 1.0


@dataclass(frozen=True)
class Bench:
    """What all draws share: the layout, its folds and bootstrap weights, the dichotomies, and the configuration."""

    design: Design
    folds: Mapping[str, tuple[Fold, ...]]
    group: probe_grid.Units
    units: int
    pool: Bool[np.ndarray, "n P"]
    carriers: Int[np.ndarray, " items"]
    settings: Mapping[str, Any]

    @property
    def width(self) -> int:
        return self.settings["calibration"]["width"]


def bench(spec: Mapping[str, Any]) -> Bench:
    """spec: `calibration`, `probes`, `statistics`."""
    planted, settings = spec["calibration"], spec["probes"]
    design = planted_activations.layout(planted["items"], planted["carriers"], planted["texts"])
    folds = {
        protocol: splits.folds(design, protocol, 0, n_folds=settings["outer_folds"], seed=settings["seed"])
        for protocol in splits.PROTOCOLS
    }
    [group] = probe_grid.resample(design, [TARGET], spec["statistics"], settings["seed"]).groups
    pool, _ = probe_controls.dichotomy_pool(design, [TARGET], settings)
    of_item = np.zeros(len(design.item_names), dtype=np.int64)
    of_item[design.items] = design.carriers["speaker"]
    return Bench(design, folds, group, group.fewest(np.ones(len(design.texts), bool)), pool, of_item, spec)


# --- one verdict ---------------------------------------------------------------------------------------------


def read_evidence(
    x: Float[np.ndarray, "n d"],
    on: Bench,
    rng: np.random.Generator,
    *,
    protocol: str = "carriers",
    selective: bool = False,
    rungs: Mapping[str, Float[np.ndarray, " k"]] | None = None,
) -> ReadEvidence:
    """Everything that READ rests on, from one set of activations. `rng` draws the sign flips.

    Dichotomies and rungs are left out where they are not asked for: fewer legs have to hold, so a family that leaves one
    out can only be called `learned` more often.
    """
    labels = designs.parity(on.design, TARGET)[:, None]
    pool = on.pool if selective else on.pool[:, :0]
    penalties = on.settings["probes"]["penalties"]
    against = probe_controls.against_dichotomies(
        torch.from_numpy(np.asarray(x, dtype=np.float32)),
        labels,
        pool,
        {0: np.arange(pool.shape[1])} if selective else {},
        on.folds[protocol],
        penalties[len(penalties) // 2],
    )
    contrasts = statistics.walsh_contrasts(x, on.design, [TARGET])[0]
    clusters = on.carriers if protocol == "carriers" else None
    accuracy = _measured(against.correct[:, 0], on)
    return ReadEvidence(
        accuracy=accuracy,
        selectivity=_measured(against.correct[:, 0] - against.mean[:, 0], on) if selective else None,
        trained=accuracy.estimate,
        rungs={} if rungs is None else rungs,
        beyond_tokens=None,
        testable=True,
        margin=on.settings["calibration"]["margins"][protocol],
        dichotomies=against.labellings[0] if selective else None,
        contrast_p=float(statistics.sign_flip_p(contrasts, clusters, on.settings["statistics"]["sign_flips"], rng)),
    )


def _measured(values: Float[np.ndarray, " n"], on: Bench) -> Measured:
    confidence = on.settings["statistics"]["confidence"]
    interval = statistics.bootstrap(values[:, None], on.group.weights, confidence, on.units, on.group.of_text)
    return Measured(
        float(interval.estimate[0]), float(interval.lower[0]), float(interval.upper[0]), on.units, confidence
    )


def accuracy_of(x: Float[np.ndarray, "n d"], on: Bench) -> float:
    """Held-out accuracy of the target alone: what a seed of a rung contributes."""
    penalties = on.settings["probes"]["penalties"]
    held_out = probe_grid.cross_validate(
        torch.from_numpy(np.asarray(x, dtype=np.float32)),
        designs.parity(on.design, TARGET)[:, None],
        on.folds["carriers"],
        [penalties[len(penalties) // 2]],
        probe_grid.REFERENCE,
    )
    return float(held_out.correct.mean())


def use_evidence(
    x: Float[np.ndarray, "n d"], readout: coordinate_swaps.ReadOut, on: Bench, rng: np.random.Generator
) -> UseEvidence:
    """Directions from the first half of the blocks, their effects on the other half."""
    fitted_on, tried_on = (np.flatnonzero(np.isin(on.design.blocks, half)) for half in ((0, 1), (2, 3)))
    nulls = on.settings["calibration"]["nulls"]
    fitted = coordinate_swaps.directions(x, on.design, fitted_on, TARGET, on.pool, nulls, rng)
    # A resample that draws none of these units is no resample of them.
    weights = on.group.weights[:, on.group.of_text[tried_on]]
    return coordinate_swaps.evidence(
        readout,
        x,
        on.design,
        TARGET,
        fitted,
        tried_on,
        weights[weights.any(axis=1)],
        units=len(np.unique(on.design.carriers["speaker"][tried_on])),
        confidence=on.settings["statistics"]["confidence"],
        margin=on.settings["calibration"]["margins"]["use"],
    )


def read_calls(evidence: ReadEvidence) -> dict[str, float]:
    """1 for each verdict that was given, `learned` being `decodable` too; and the accuracy."""
    verdict = verdicts.read(evidence, verdicts.read_legs(evidence)).verdict
    return {
        "decodable": float(verdict in (verdicts.DECODABLE, verdicts.LEARNED)),
        "learned": float(verdict == verdicts.LEARNED),
        "absent": float(verdict == verdicts.ABSENT),
        "accuracy": evidence.accuracy.estimate,
    }


def use_calls(evidence: UseEvidence) -> dict[str, float]:
    """1 for each verdict that was given; and the effect that was found."""
    verdict = verdicts.use(evidence).verdict
    return {
        "used": float(verdict == verdicts.USED),
        "not_used": float(verdict == verdicts.NOT_USED),
        "effect_found": evidence.effect.estimate,
    }


# --- planted models ------------------------------------------------------------------------------------------


def _additive(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return read_calls(read_evidence(planted_activations.background(on.design, on.width, rng), on, rng))


def _look_ups(on: Bench, rng: np.random.Generator, effect: float, protocol: str = "carriers") -> dict[str, float]:
    x = planted_activations.background(on.design, on.width, rng)
    x += planted_activations.look_ups(on.design, on.width, rng)
    return read_calls(read_evidence(x, on, rng, protocol=protocol))


def _look_ups_shared(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return _look_ups(on, rng, effect, "items")


def _mixing(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    x = planted_activations.background(on.design, on.width, rng)
    x += planted_activations.mixing(on.design, on.width, LARGE, rng)
    return read_calls(read_evidence(x, on, rng, selective=True))


def _seeds(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    def network() -> np.ndarray:
        x = planted_activations.background(on.design, on.width, rng)
        length = LARGE * np.exp(0.3 * rng.standard_normal())
        return x + _pair(on, length, rng)

    rung = np.array([accuracy_of(network(), on) for _ in range(on.settings["calibration"]["seeds"])])
    return read_calls(read_evidence(network(), on, rng, selective=True, rungs={"init": rung}))


def _decodable(on: Bench, rng: np.random.Generator, effect: float, protocol: str = "items") -> dict[str, float]:
    # ‖δ‖ of a pair is twice the distance of the two classes.
    x = planted_activations.background(on.design, on.width, rng) + _pair(on, effect / 2, rng)
    calls = read_calls(read_evidence(x, on, rng, protocol=protocol))
    # Without the legs that tell learned from decodable the two are one.
    return {verdict: given for verdict, given in calls.items() if verdict != "learned"}


def _decodable_carriers(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return _decodable(on, rng, effect, "carriers")


def _learned(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    def network() -> np.ndarray:
        x = planted_activations.background(on.design, on.width, rng)
        return x + planted_activations.mixing(on.design, on.width, MIXED, rng)

    rung = np.array([accuracy_of(network(), on) for _ in range(on.settings["calibration"]["seeds"])])
    return read_calls(
        read_evidence(network() + _pair(on, effect / 2, rng), on, rng, selective=True, rungs={"init": rung})
    )


def _pair(on: Bench, length: float, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    return planted_activations.effect(on.design, TARGET, length * planted_activations.unit(on.width, rng))


def _read_out(on: Bench, rng: np.random.Generator, share: float, *, orthogonal: bool) -> dict[str, float]:
    """A model whose read-out gets `share` of its gap from the direction of the XOR, and the rest from elsewhere."""
    direction = planted_activations.unit(on.width, rng)
    x = planted_activations.background(on.design, on.width, rng)
    x += planted_activations.effect(on.design, TARGET, LARGE * direction)
    other = planted_activations.unit(on.width, rng)
    jitter = rng.standard_normal((len(on.design.item_names), on.width)) / on.width**0.5 / 2
    if orthogonal:
        other -= (other @ direction) * direction
        other /= np.linalg.norm(other)
        jitter -= (jitter @ direction)[:, None] * direction
    # Items are read in somewhat different directions: a swap does not change all of them alike.
    reading = (share * direction + UNRELATED_READING * (other + jitter)) / LARGE
    elsewhere = (1 - share) * planted_activations.half_sign(on.design, TARGET)[:, 0]

    def readout(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return (vectors * reading[on.design.items[rows]]).sum(axis=1) + elsewhere[rows]

    return use_calls(use_evidence(x, readout, on, rng))


def _orthogonal(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return _read_out(on, rng, 0.0, orthogonal=True)


def _unrelated(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return _read_out(on, rng, 0.0, orthogonal=False)


def _used(on: Bench, rng: np.random.Generator, effect: float) -> dict[str, float]:
    return _read_out(on, rng, effect, orthogonal=True)


Draw = Callable[[Bench, np.random.Generator, float], dict[str, float]]
PLANTED: Mapping[str, Draw] = {
    "additive": _additive,
    "look_ups": _look_ups,
    "mixing": _mixing,
    "seeds": _seeds,
    "orthogonal": _orthogonal,
    "unrelated": _unrelated,
    "power_decodable": _decodable,
    "power_decodable_carriers": _decodable_carriers,
    "power_learned": _learned,
    "power_used": _used,
}


# --- rates ---------------------------------------------------------------------------------------------------


def calibrate(spec: Mapping[str, Any], experiment: str) -> pd.DataFrame:
    """Rates of every verdict in one null family, or along one power curve. spec: `calibration`, `probes`, `statistics`.

    Rows have model `planted-<experiment>` and revision `effect-<effect>`. `called_<verdict>` has the interval of Clopper
    and Pearson; its level is .05 where the verdict is wrong.
    """
    on, planted = bench(spec), spec["calibration"]
    name = experiment.removeprefix("power_")
    effects = [0.0] if experiment in NULLS else [float(effect) for effect in planted["effects"][name]]
    draws = planted["draws"] if experiment in NULLS else planted["power_draws"]
    protocol = "none" if "used" in name or name in ("orthogonal", "unrelated") else "carriers"
    protocol = "items" if name == "decodable" else protocol
    rows: list[dict[str, Any]] = []
    by_effect: dict[str, list[tuple[float, int]]] = {}
    for effect, found in zip(effects, _draws(PLANTED[experiment], on, experiment, effects, draws), strict=True):
        at = _row(spec, experiment, f"effect-{effect:g}", protocol, draws)
        rows.append({**at, "score": "effect", "level": 0.0, "estimate": effect})
        rows += rate_rows(found, at, WRONG.get(experiment, ()))
        for verdict in found.columns.intersection(["decodable", "learned", "used"]):
            by_effect.setdefault(verdict, []).append((effect, int(found[verdict].sum())))
    if experiment == "look_ups":
        [shared] = _draws(_look_ups_shared, on, "look_ups_shared", [0.0], planted["power_draws"])
        rows += rate_rows(shared, _row(spec, experiment, "effect-0", "items", planted["power_draws"]), ())
    if experiment not in NULLS:
        at = _row(spec, experiment, "all", protocol, draws)
        for verdict, curve in by_effect.items():
            smallest = smallest_effect(*map(np.array, zip(*curve, strict=True)), draws)
            rows.append({**at, "score": f"effect_at_90_{verdict}", **smallest})
    return tables.frame(rows)


def _draws(planted: Draw, on: Bench, experiment: str, effects: Sequence[float], draws: int) -> Iterator[pd.DataFrame]:
    # Named, not numbered: a family keeps its draws when another is added.
    key = [on.settings["calibration"]["seed"], *experiment.encode()]
    for index, effect in enumerate(progress.bar(effects, label=experiment)):
        yield pd.DataFrame([planted(on, np.random.default_rng([*key, index, draw]), effect) for draw in range(draws)])


def rate_rows(found: pd.DataFrame, at: Mapping[str, Any], wrong: Sequence[str]) -> Iterator[dict[str, Any]]:
    """How often each verdict was given; the mean of what was measured."""
    for score in found.columns:
        if score in ("accuracy", "effect_found"):
            interval = statistics.t_interval(found[score].to_numpy())
            ends = (float(end) for end in (interval.estimate, interval.lower, interval.upper))
            level = 0.5 if score == "accuracy" else 0.0
            yield {**at, "score": score, "level": level, **dict(zip(("estimate", "lower", "upper"), ends, strict=True))}
            continue
        level = verdicts.ALPHA if score in wrong else float("nan")
        yield {**at, "score": f"called_{score}", "level": level, **rate(int(found[score].sum()), len(found))}


def rate(hits: int, draws: int) -> dict[str, float]:
    """A share with the interval of Clopper and Pearson."""
    interval = stats.binomtest(hits, draws).proportion_ci(0.95)
    return {"estimate": hits / draws, "lower": float(interval.low), "upper": float(interval.high)}


def most_false_positives(draws: int) -> int:
    """Wrong verdicts of level .05 that so many draws exceed once in forty times: 64 of 1,000."""
    return int(stats.binom.ppf(0.975, draws, verdicts.ALPHA))


def smallest_effect(effects: Float[np.ndarray, " e"], hits: Int[np.ndarray, " e"], draws: int) -> dict[str, float]:
    """Where power crosses 90%, with the ends at which the rates' own ends cross it; NaN where it is not reached."""
    rates = [rate(int(k), draws) for k in hits]
    ends = {
        name: _crossing(effects, np.array([at[other] for at in rates]))
        for name, other in (("estimate", "estimate"), ("lower", "upper"), ("upper", "lower"))
    }
    note = "" if np.isfinite(ends["estimate"]) else f"power stays below {POWER:.0%}; raise calibration.effects"
    return {**ends, "note": note}


def _crossing(effects: Float[np.ndarray, " e"], rates: Float[np.ndarray, " e"]) -> float:
    rising = optimize.isotonic_regression(rates).x
    if rising[-1] < POWER:
        return float("nan")
    first = int(np.argmax(rising >= POWER))
    if first == 0:
        return float(effects[0])
    share = (POWER - rising[first - 1]) / (rising[first] - rising[first - 1])
    return float(effects[first - 1] + share * (effects[first] - effects[first - 1]))


def _row(spec: Mapping[str, Any], experiment: str, revision: str, protocol: str, draws: int) -> dict[str, Any]:
    planted = spec["calibration"]
    return {
        **tables.NOT_APPLICABLE,
        "model": f"planted-{experiment}",
        "revision": revision,
        "step": -1,
        "weights": "none",
        "design": "calibration",
        "target": TARGET,
        "protocol": protocol,
        "probe": "swap" if protocol == "none" else probe_grid.REFERENCE,
        "n_texts": planted["items"] * planted["texts"],
        "n_groups": draws,
    }
