"""The experiments on toy networks, put together: what each claim's criterion says of the measured cells.

    trained       a task that needs no XOR, learned by networks of few neurons         (C05, C06)
    constructed   weights written down: Bernoulli U-AND, and features that share neurons  (C07, C21)
    genericity    random and trained first layers on U-AND and U-XOR                    (C41-C44)
    redundancy    random residual networks over copied inputs                           (C14)
    geometry      learned and fixed directions of more features than dimensions         (C18)

A criterion is a list of legs, each `yes`, `no` or `undecided` from an interval over networks; a claim is
supported where every deciding leg is yes, contradicted where one is no, not run where it has no legs,
inconclusive otherwise. Legs that decide nothing are marked so.

Two explanations of an XOR that nobody asked for, and where they part:

    interference   Hoagy: A and B are computed by shared neurons, so that each is computed a little
                   differently when the other is on. Then the XOR of two COMPUTED features is readable beyond
                   what random weights give, and the more so the more features share a width.
    for free       Newgas (2025, arXiv 2507.09816): a circuit for one boolean function of two inputs makes all
                   of them linearly readable. Then the XOR of two inputs is readable where their AND is
                   computed, more than where nothing of them is, and the more so the more ROOM there is; with
                   a read-off that errs by e on AND, XOR = x + y - 2 AND is read with error 2e.

They differ in the sign of the slope on crowding m/d, in which pairs are readable, and in whether training
adds to it.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from counterprobe import superposition_cells

EXPERIMENTS = ("trained", "constructed", "genericity", "redundancy", "geometry")
# A claim made "at a fixed number of active inputs" is judged at this one; the others are printed beside it.
PRIMARY_S = 3.0
EXACT = 1e-6
CHANCE_MARGIN = 0.05
REDUNDANT, DISTINCT = (16, 16), (64, 1)
VERDICT_COLUMNS = {
    "claim": "string",
    "leg": "string",
    "criterion": "string",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "n_networks": "integer",
    "excluded": "integer",
    "decides": "boolean",
    "holds": "string",
}


def gather(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One table of cells from the experiments' tables of networks; row order depends on the rows alone."""
    every = [superposition_cells.read(path) for path in sorted(map(str, paths))]
    return superposition_cells.cells(pd.concat(every, ignore_index=True))


def verdicts(cells: pd.DataFrame) -> pd.DataFrame:
    """Every leg of every claim and explanation, and one row `verdict` for each of them."""
    rows: list[dict[str, object]] = []
    for claim, legs in CLAIMS.items():
        measured = [leg | {"claim": claim} for leg in legs(cells)]
        rows += measured
        deciding = [leg["holds"] for leg in measured if leg["decides"]]
        verdict = "inconclusive" if measured else "not run"
        if deciding and all(holds == "yes" for holds in deciding):
            verdict = "supported"
        elif "no" in deciding:
            verdict = "contradicted"
        left_out = _excluded(cells, claim) or sum(int(leg["excluded"]) for leg in measured)
        rows.append(
            _leg("verdict", "every deciding leg", None, verdict, decides=False) | {"claim": claim, "excluded": left_out}
        )
    return superposition_cells.typed(pd.DataFrame(rows), VERDICT_COLUMNS)


def _excluded(cells: pd.DataFrame, claim: str) -> int:
    """Networks left out of the cells of a claim, each counted once however many scores it would have had."""
    own = cells[cells.claim == claim]
    once = [name for name in superposition_cells.FACTORS if name not in ("target", "readout", "score")]
    return int(own.groupby(once, dropna=False).excluded.max().sum())


def _leg(name: str, criterion: str, row: pd.Series | None, holds: str, *, decides: bool = True) -> dict[str, object]:
    measured = {"estimate": np.nan, "lower": np.nan, "upper": np.nan, "n_networks": 0, "excluded": 0}
    if row is not None:
        measured = {column: row[column] for column in measured}
    return {"leg": name, "criterion": criterion, **measured, "decides": decides, "holds": holds}


def _above(row: pd.Series | None, bar: float) -> str:
    return _decide(row, lambda lower, upper: (lower > bar, upper < bar))


def _below(row: pd.Series | None, bar: float) -> str:
    return _decide(row, lambda lower, upper: (upper < bar, lower > bar))


def _inside(row: pd.Series | None, low: float, high: float) -> str:
    return _decide(row, lambda lower, upper: (low < lower and upper < high, upper < low or lower > high))


def _decide(row: pd.Series | None, test: Callable[[float, float], tuple[bool, bool]]) -> str:
    if row is None or not (np.isfinite(row.lower) and np.isfinite(row.upper)):
        return "undecided"
    holds, fails = test(row.lower, row.upper)
    return "yes" if holds else "no" if fails else "undecided"


def _select(cells: pd.DataFrame, **values: object) -> pd.DataFrame:
    kept = np.ones(len(cells), bool)
    for column, value in values.items():
        kept &= (cells[column] == value).to_numpy()
    return cells[kept]


def _only(cells: pd.DataFrame, **values: object) -> pd.Series | None:
    chosen = _select(cells, **values)
    return chosen.iloc[0] if len(chosen) == 1 else None


def _base(cells: pd.DataFrame) -> dict[str, object]:
    """The base cell of the trained sweep: the (m, d, s, depth) that the slopes of both directions share."""
    slopes = cells[(cells.experiment == "trained") & (cells.score == "accuracy_slope")]
    if slopes.empty:
        return {}
    row = slopes.iloc[0]
    return {"m": slopes.m.max(), "d": slopes.d.max(), "s": row.s, "depth": row.depth}


def _c05(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = []
    for network, decides in (("trained", True), ("init", False)):
        row = _only(
            cells,
            experiment="trained",
            network=network,
            target="xor_needless",
            score="interaction_ratio_slope",
            setting="over m/d at fixed d",
        )
        legs.append(
            _leg(
                f"slope of the interaction on m/d, {network}",
                "interval > 0",
                row,
                _above(row, 0.0),
                decides=decides,
            )
        )
    return legs


def _c06(cells: pd.DataFrame) -> list[dict[str, object]]:
    at = {"experiment": "trained", "target": "xor_needless", **_base(cells)}
    accuracy = _only(cells, network="trained", score="accuracy", **at)
    difference = _only(cells, network="trained - init", score="accuracy", **at)
    worst = _only(cells, network="trained", score="worst_cell", **at)
    return [
        _leg("accuracy, trained", "interval > .5", accuracy, _above(accuracy, 0.5)),
        _leg("accuracy, trained - init", "interval > 0", difference, _above(difference, 0.0)),
        _leg("worst cell, trained (beyond OR)", "interval > .5", worst, _above(worst, 0.5), decides=False),
    ]


def _c07(cells: pd.DataFrame) -> list[dict[str, object]]:
    built = _select(cells, experiment="constructed", network="designated", setting="direct inputs")
    accuracy = built[(built.score == "accuracy")]
    shared, exclusive = accuracy[accuracy.p > 0].dropna(subset="lower"), accuracy[accuracy.p == 0]
    best = shared.loc[shared.lower.idxmax()] if len(shared) else None
    none = exclusive.iloc[0] if len(exclusive) else None
    named = "" if best is None else f" (m {best.m}, d {best.d}, s {best.s:g}, p {best.p:g})"
    worst = None
    if best is not None:
        worst = _only(built, score="worst_cell", m=best.m, d=best.d, s=best.s, p=best.p)
    return [
        _leg(f"accuracy with shared neurons{named}", "interval > .5 somewhere", best, _above(best, 0.5)),
        _leg(
            "accuracy without shared neurons",
            f"interval inside .5 ± {CHANCE_MARGIN:g}",
            none,
            _inside(none, 0.5 - CHANCE_MARGIN, 0.5 + CHANCE_MARGIN),
        ),
        _leg("worst cell there (beyond OR)", "interval > .5", worst, _above(worst, 0.5), decides=False),
    ]


def _c14(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = []
    for (k, r), bar, above in ((REDUNDANT, 0.9, True), (DISTINCT, 0.55, False)):
        row = _only(cells, experiment="redundancy", target="xor", score="accuracy", m=k, copies=r)
        holds = "undecided"
        if row is not None and row.n_networks > 1:
            holds = "yes" if (row.estimate >= bar if above else row.estimate <= bar) else "no"
        legs.append(_leg(f"accuracy at {k} × {r}", f"mean {'≥' if above else '≤'} {bar:g}", row, holds))
    return legs


def _c18(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = []
    for _, row in _select(cells, experiment="geometry", score="antipodal_pairs").iterrows():
        name = f"{row.network}, {row.setting}, m {row.m}, d {row.d}, density {row.p:g}"
        if row.network == "fixed":
            # One pair in every network would be learning's doing; chance is far below it where d is not tiny.
            legs.append(_leg(name, "interval < 1", row, _below(row, 1.0)))
        else:
            sparse = row.p < 0.5 or row.setting == "exclusive"
            legs.append(_leg(name, "interval > chance", row, _above(row, row.level), decides=sparse))
    return legs


def _c21(cells: pd.DataFrame) -> list[dict[str, object]]:
    built = _select(cells, experiment="constructed", network="bernoulli")
    p = _select(built, score="p").sort_values("d")
    legs = [_first("p ≤ .5", p, p.estimate <= 0.5, decides=True)]
    s = built.s.min()
    for readout in ("mean", "mean_centred"):
        error = _select(built, score="max_error", readout=readout, s=s).sort_values("d")
        name = f"maximal error < 1/4, {readout} read-off, s = {s:g}"
        legs.append(_first(name, error, error.upper < 0.25, decides=readout == "mean"))
    return legs


def _first(name: str, rows: pd.DataFrame, holds: pd.Series, *, decides: bool) -> dict[str, object]:
    """The first width at which something holds, against [1k, 4k]."""
    if not rows.n_networks.any():
        return _leg(f"{name}: not measured", "first width in [1024, 4096]", None, "undecided", decides=decides)
    found = rows[holds.to_numpy()]
    if found.empty:
        return _leg(
            f"{name}: at no width up to {rows.d.max()}",
            "first width in [1024, 4096]",
            None,
            "no",
            decides=decides,
        )
    row = found.iloc[0]
    inside = 1024 <= row.d <= 4096
    return _leg(
        f"{name}: first at d = {row.d}",
        "first width in [1024, 4096]",
        row,
        "yes" if inside else "no",
        decides=decides,
    )


def _c41(cells: pd.DataFrame) -> list[dict[str, object]]:
    ratios = cells[(cells.experiment == "genericity") & (cells.network == "frozen / trained")]
    legs = []
    for _, row in ratios.iterrows():
        decides = row.setting.endswith(" weighted") and int(row.setting[1:].split()[0]) >= 4
        name = f"{row.score}, {row.target}, {row.setting}, d {row.d}"
        legs.append(_leg(name, "interval ≤ 2", row, _below(row, 2.0), decides=decides))
    return legs


def _c42(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = []
    for target, exact in (("and", 0.25), ("xor", 0.5)):
        at = {"experiment": "genericity", "target": target, "score": "max_error"}
        affine = _only(cells, network="affine", **at)
        holds = (
            "undecided"
            if affine is None or affine.n_networks == 0
            else "yes"
            if abs(affine.estimate - exact) < EXACT
            else "no"
        )
        legs.append(_leg(f"affine minimax error, {target}", f"{exact:g} to 1e-6", affine, holds))
        random = _select(cells, network="random", readout="minimax", **at).dropna(subset="estimate")
        widest = random.loc[random.d.idxmax()] if len(random) else None
        name = f"random ReLU layer, minimax, {target}" + ("" if widest is None else f", d {widest.d}")
        legs.append(_leg(name, f"interval < {exact:g}", widest, _below(widest, exact)))
    return legs


def _c43(cells: pd.DataFrame) -> list[dict[str, object]]:
    rows = _select(cells, experiment="genericity", readout="indicator", target="and")
    legs = []
    for _, row in _select(rows, score="log_slope").iterrows():
        decides = row.setting == "fixed s" and row.s == PRIMARY_S
        name = f"log-log slope, {row.setting} {row.s:g}"
        legs.append(_leg(name, "interval inside -.5 ± .1", row, _inside(row, -0.6, -0.4), decides=decides))
    constants = _select(rows, score="rms_error_root_d", setting="fixed s")
    for _, row in constants[constants.d == constants.d.max()].iterrows():
        name = f"error × √d at d {row.d}, s {row.s:g}"
        legs.append(_leg(name, "interval < 10", row, _below(row, 10.0), decides=row.s == PRIMARY_S))
    return legs


def _c44(cells: pd.DataFrame) -> list[dict[str, object]]:
    rows = _select(cells, experiment="genericity", target="and", score="collapsed")
    legs = []
    for _, row in rows.iterrows():
        norm, weighting = row.setting[1:].split()
        collapses = int(norm) <= 2 and weighting == "unweighted"
        holds = _above(row, 0.5) if collapses else _below(row, 0.5)
        name = f"share of ANDs read as about 0, {row.network}, {row.setting}, d {row.d}"
        legs.append(_leg(name, "> .5" if collapses else "< .5", row, holds, decides=row.d == rows.d.min()))
    return legs


def _interference(cells: pd.DataFrame) -> list[dict[str, object]]:
    at = {"experiment": "trained", "network": "trained", "target": "xor_needless"}
    growing = _only(cells, score="interaction_ratio_slope", setting="over m/d at fixed d", **at)
    name = "interaction of computed features: slope on m/d at fixed d"
    legs = [_leg(name, "interval > 0", growing, _above(growing, 0.0), decides=False)]
    for fixed, decides in (("d", True), ("m", False)):
        row = _only(cells, score="accuracy_slope", setting=f"over m/d at fixed {fixed}", **at)
        name = f"XOR of computed features: slope of accuracy on m/d at fixed {fixed}"
        legs.append(_leg(name, "interval > 0", row, _above(row, 0.0), decides=decides))
    trained = _only(cells, **(at | {"network": "trained - init"}), score="accuracy", **_base(cells))
    legs.append(_leg("XOR of computed features: trained - init", "interval > 0", trained, _above(trained, 0.0)))
    return legs


def _for_free(cells: pd.DataFrame) -> list[dict[str, object]]:
    at: dict[str, object] = {
        "experiment": "trained",
        "target": "xor_computed - xor_uncomputed",
        "score": "accuracy",
    }
    legs = []
    differences = _select(cells, **at)
    trained = _select(differences, network="trained", **{k: v for k, v in _base(cells).items() if k in ("s", "depth")})
    if len(trained):
        for _, row in trained.sort_values(["m", "d"]).iterrows():
            name = f"XOR of inputs whose AND is computed minus of others, m {row.m}, d {row.d}"
            roomy = row.m / row.d == (trained.m / trained.d).min()
            legs.append(_leg(name, "interval > 0", row, _above(row, 0.0), decides=bool(roomy)))
    for fixed in ("d", "m"):
        row = _only(
            cells,
            experiment="trained",
            network="trained",
            target="xor_computed",
            score="accuracy_slope",
            setting=f"over m/d at fixed {fixed}",
        )
        name = f"XOR of inputs whose AND is computed: slope of accuracy on m/d at fixed {fixed}"
        legs.append(_leg(name, "interval < 0", row, _below(row, 0.0)))
    ratios = cells[
        (cells.experiment == "genericity") & (cells.score == "rms_error_ratio") & (cells.target == "xor / and")
    ]
    for _, row in ratios.dropna(subset="estimate").iterrows():
        name = f"error of XOR over error of AND, random layer, m {row.m}, d {row.d}, s {row.s:g}"
        legs.append(_leg(name, "interval inside 2 ± .25", row, _inside(row, 1.75, 2.25), decides=False))
    return legs


def _not_run(_: pd.DataFrame) -> list[dict[str, object]]:
    return []


CLAIMS: dict[str, Callable[[pd.DataFrame], Iterable[dict[str, object]]]] = {
    "C05": _c05,
    "C06": _c06,
    "C07": _c07,
    "C14": _c14,
    "C18": _c18,
    "C20": _not_run,
    "C21": _c21,
    "C41": _c41,
    "C42": _c42,
    "C43": _c43,
    "C44": _c44,
    "interference": _interference,
    "for free": _for_free,
}
