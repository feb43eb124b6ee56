"""The table of verdicts: what the other tables say of every target, put before the rules of `verdicts`.

Nothing is measured here. One row a model, revision, design, read position and target:

READ   under the first protocol that holds something out, every fold at the layer its inner folds chose. Dichotomies,
       tokens and the sign-flip p of the contrast are those of the layer whose probe told most on the inner folds.
       Compared with every rung by accuracy; by bits where the trained model or a seed of a rung reads more than 95%,
       where accuracies are squeezed against 1. All of them decide alike: under the hypothesis that is tested the trained
       model is one more seed, and a choice that singled it out would bias the test. Kept and randomised embeddings count
       as two rungs. A rung of which most layers have collapsed is left out.
USE    at the layer where the target was swapped: the effect on its own read-out where the model answers it, else the
       divergence.

p-values are corrected by Holm's rule over the targets and models of one design and position.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from counterprobe import coordinate_swaps, designs, splits, verdicts
from counterprobe.designs import Design
from counterprobe.verdicts import Dichotomies, Measured, ReadEvidence, UseEvidence

COLUMNS = {
    "model": "string",
    "revision": "string",
    "design": "string",
    "position": "string",
    "bos": "boolean",
    "target": "string",
    "role": "string",
    "protocol": "string",
    "read": "string",
    "read_p": "number",
    "layer": "integer",
    "accuracy": "number",
    "lower": "number",
    "upper": "number",
    "bits_above": "number",
    "explained_by": "string",
    "use": "string",
    "use_p": "number",
    "use_layer": "integer",
    "effect": "number",
    "effect_lower": "number",
    "effect_upper": "number",
    "null_bound": "number",
    "effect_of": "string",
    "verdict": "string",
    "note": "string",
}
SITE = ["model", "revision", "design", "position", "bos"]
SATURATED = 0.95
DECISIVE = ("within_cell", "dichotomy")
NO_RUNG = "no rung was run"


def judge(
    probes: pd.DataFrame,
    health: pd.DataFrame,
    use: pd.DataFrame,
    audit: pd.DataFrame,
    every: Mapping[str, Design],
    protocols: Mapping[str, Sequence[str]],
    margins: Mapping[str, float],
    *,
    n_folds: int,
    seed: int,
) -> pd.DataFrame:
    """One row a site and target, with the columns of `COLUMNS`. `every` and `protocols` are by design, folds as probed.

    margins: `carriers` and `items` for `absent`, `effect` (a share) and `divergence` (bits) for `not used`.
    """
    found: list[dict[str, Any]] = []
    for values, of_site in use.groupby(SITE, sort=True):
        site = dict(zip(SITE, values, strict=True))
        design = every[site["design"]]
        protocol = splits.primary_protocol(design, protocols[design.name], n_folds=n_folds, seed=seed)
        here = probes[_is(probes, {k: site[k] for k in ("model", "design", "position", "bos")})]
        for target in of_site.target.unique():
            evidence, layer, bits_above = _read_evidence(here, health, audit, design, site, target, protocol, margins)
            swapped, of = _use_evidence(of_site[of_site.target == target], margins)
            found.append(
                {
                    **site,
                    "target": target,
                    "role": role(design, target),
                    "protocol": protocol,
                    "layer": layer,
                    "accuracy": evidence.accuracy.estimate,
                    "lower": evidence.accuracy.lower,
                    "upper": evidence.accuracy.upper,
                    "bits_above": bits_above,
                    "use_layer": int(of_site.layer.iloc[0]),
                    "effect": swapped.effect.estimate,
                    "effect_lower": swapped.effect.lower,
                    "effect_upper": swapped.effect.upper,
                    "null_bound": max(map(verdicts.null_bound, swapped.nulls.values()), default=float("nan")),
                    "effect_of": of,
                    "note": designs.closed_under_xor(design, target),
                    "_read": evidence,
                    "_use": swapped,
                }
            )
    rows = [row for family in _families(found) for row in _decided(family)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values([*SITE, "target"], ignore_index=True)


def role(design: Design, target: str) -> str:
    """What the target is to the question."""
    if target in design.needed:
        return "needed XOR"
    if target == designs.canonical(design, "^".join(design.primary)):
        return "pre-registered"
    return "needless XOR" if "^" in target else "basic feature"


def _families(found: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for key in sorted({(row["design"], row["position"]) for row in found}):
        yield [row for row in found if (row["design"], row["position"]) == key]


def _decided(family: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    legs = [verdicts.read_legs(row["_read"]) for row in family]
    decodable = verdicts.holm([leg.decodable for leg in legs])
    learned = verdicts.holm([leg.learned for leg in legs])
    used = verdicts.holm([verdicts.use_p(row["_use"]) for row in family])
    for place, row in enumerate(family):
        read = verdicts.read(row["_read"], legs[place], decodable=decodable[place], learned=learned[place])
        use = verdicts.use(row["_use"], used[place])
        yield {
            **{name: value for name, value in row.items() if not name.startswith("_")},
            "read": read.verdict,
            "read_p": read.p,
            "explained_by": ", ".join(read.explained_by),
            "use": use.verdict,
            "use_p": use.p,
            "verdict": verdicts.of_the_model(read.verdict, use.verdict),
        }


def _is(table: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    chosen = pd.Series(True, index=table.index)
    for column, value in wanted.items():
        chosen &= table[column] == value
    return chosen


def _read_evidence(
    here: pd.DataFrame,
    health: pd.DataFrame,
    audit: pd.DataFrame,
    design: Design,
    site: Mapping[str, Any],
    target: str,
    protocol: str,
    margins: Mapping[str, float],
) -> tuple[ReadEvidence, int, float]:
    """Evidence for READ, the layer that the inner folds chose, and bits above the strongest rung."""
    of_target = here[(here.target == target) & (here.protocol == protocol)]
    trained = of_target[(of_target.weights == "trained") & (of_target.revision == site["revision"])]
    plain = trained[
        (trained.probe == "logistic") & (trained.control == "none") & (trained.representation == "activations")
    ]
    inner = plain[(plain.score == "inner_bits") & (plain.layer >= 0)]
    layer = int(inner.loc[inner.estimate.idxmax()].layer)
    rate = "balanced_accuracy" if design.priors else "accuracy"
    chosen = plain[plain.layer == -1].set_index("score")
    accuracy = _measured(chosen.loc[rate])
    rungs = {score: _rungs(of_target, health, site, score) for score in (rate, "bits")}
    rates = np.concatenate([[accuracy.estimate], *rungs[rate].values()])
    saturated = bool((rates > SATURATED).any())
    score = "bits" if saturated else rate
    strongest = max((float(np.mean(seeds)) for seeds in rungs["bits"].values()), default=float("nan"))
    at_layer = trained[trained.layer == layer]
    against = at_layer[at_layer.control == "dichotomy"].set_index("score")
    selective = "selectivity" in against.index
    beyond = at_layer[at_layer.score == "bits_beyond_tokens"]
    contrast = at_layer[(at_layer.probe == "contrast") & at_layer.score.isin(["p_carriers", "p_items"])]
    if contrast.empty:
        # A target none of whose factors has carriers is flipped by items.
        items = here[(here.target == target) & (here.score == "p_items") & (here.layer == layer)]
        contrast = items[(items.weights == "trained") & (items.revision == site["revision"])]
    held_out = audit[
        (audit.design == design.name)
        & (audit.protocol == protocol)
        & (audit.target == target)
        & (audit.check == "held_out")
    ]
    return (
        ReadEvidence(
            accuracy=accuracy,
            selectivity=_measured(against.loc["selectivity"]) if selective else None,
            trained=float(chosen.loc[score].estimate),
            rungs=rungs[score] or {NO_RUNG: np.full(2, np.nan)},
            beyond_tokens=_measured(beyond.iloc[0]) if len(beyond) else None,
            testable=not (held_out.verdict == "not testable").any(),
            margin=margins[protocol],
            dichotomies=Dichotomies(
                target=float(against.loc["accuracy"].estimate + against.loc["selectivity"].estimate),
                mean=float(against.loc["accuracy"].estimate),
                spread=float(against.loc["spread"].estimate),
                count=int(against.loc["spread"].n_groups),
                rank=int(against.loc["rank"].estimate),
            )
            if selective
            else None,
            contrast_p=float(contrast.estimate.iloc[0]) if len(contrast) else None,
        ),
        layer,
        float(chosen.loc["bits"].estimate) - strongest,
    )


def _rungs(of_target: pd.DataFrame, health: pd.DataFrame, site: Mapping[str, Any], score: str) -> dict[str, np.ndarray]:
    """Numbers of the seeds of every rung that is alive, at the layers their folds chose."""
    dead = health[
        (health.score == "collapsed")
        & _is(health, {key: site[key] for key in ("model", "revision", "design", "position")})
    ]
    dead = dead.groupby(["weights", "embeddings"]).estimate.mean()
    rows = of_target[
        (of_target.weights != "trained")
        & (of_target.revision == site["revision"])
        & (of_target.score == score)
        & (of_target.layer == -1)
        & (of_target.control == "none")
    ]
    found = {}
    for (weights, embeddings), seeds in rows.groupby(["weights", "embeddings"], sort=True):
        if dead.get((weights, embeddings), 0.0) <= 0.5:
            found[f"{weights} ({embeddings})"] = seeds.estimate.to_numpy()
    return found


def _use_evidence(of_target: pd.DataFrame, margins: Mapping[str, float]) -> tuple[UseEvidence, str]:
    """Evidence for USE, and which score it is about."""
    moved = of_target[of_target.probe == coordinate_swaps.WALSH].set_index("score")
    of = "effect" if "effect" in moved.index else "divergence"
    nulls = of_target[(of_target.probe == "null") & (of_target.score == of) & of_target.control.isin(DECISIVE)]
    return (
        UseEvidence(
            effect=_measured(moved.loc[of]),
            nulls={kind: rows.estimate.to_numpy() for kind, rows in nulls.groupby("control")},
            predicted=of == "effect",
            margin=margins[of],
        ),
        of,
    )


def _measured(row: pd.Series) -> Measured:
    return Measured(float(row.estimate), float(row.lower), float(row.upper), int(row.n_groups))
