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

`PREDICTIONS` is what each says of every measured quantity: signs, our reading of the two explanations, with nothing
fitted. A quantity decides between them only where both say something and the signs differ; it is judged at the
base cell, and cells with more room are shown as such. A sign 0 is an interval inside ± `CHANCE_MARGIN`.

Two quantities are shown beside "for free" and decide nothing: the error of XOR over that of AND is 2 by algebra
wherever the inputs are known, and the XOR accuracy of Bernoulli U-AND minus that of a random layer of equal size
compares two layers that both compute ANDs, as a random one does so too (C43); of neither does interference speak.

A criterion is judged with these guards. A ratio of two errors says nothing where both networks fail, so C41
decides only where the trained network's maximal error is surely below that of the best affine read-off of the
inputs. The best of several cells (C07) is judged after Holm's correction over them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from counterprobe import statistics, superposition_cells

EXPERIMENTS = ("trained", "constructed", "genericity", "redundancy", "geometry")
# A claim made "at a fixed number of active inputs" is judged at this one; the others are printed beside it.
PRIMARY_S = 3.0
EXACT = 1e-6
CHANCE_MARGIN = 0.05
REDUNDANT, DISTINCT = (16, 16), (64, 1)
AFFINE_ERROR = {"and": 0.25, "xor": 0.5}
FIXED_D, FIXED_M = "over m/d at fixed d", "over m/d at fixed m"
ADVANTAGE = "xor_computed - xor_uncomputed"
DERIVED = (" - ", " / ")  # in the name of what is worked out from two networks or two targets
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


@dataclass(frozen=True)
class Prediction:
    """Signs (+, -, 0, or empty where nothing is said) of one quantity under the two explanations."""

    quantity: str
    interference: str
    for_free: str
    where: dict[str, str] = field(default_factory=dict)
    at_base: bool = False

    @property
    def decides(self) -> bool:
        """Whether the two explanations both speak and disagree."""
        return bool(self.interference and self.for_free) and self.interference != self.for_free


def _slope_on_crowding(
    quantity: str, signs: tuple[str, str], network: str, target: str, score: str
) -> list[Prediction]:
    return [
        Prediction(
            f"{quantity}: slope {setting}",
            *signs,
            {"network": network, "target": target, "score": f"{score}_slope", "setting": setting},
        )
        for setting in (FIXED_D, FIXED_M)
    ]


PREDICTIONS = (
    *_slope_on_crowding("XOR accuracy, AND computed minus not", ("+", "-"), "trained", ADVANTAGE, "accuracy"),
    *_slope_on_crowding(
        "XOR accuracy, AND computed, trained - init", ("+", "-"), "trained - init", "xor_computed", "accuracy"
    ),
    *_slope_on_crowding(
        "interaction, AND computed, trained - init", ("+", "-"), "trained - init", "xor_computed", "interaction_ratio"
    ),
    *_slope_on_crowding(
        "interaction of computed features, trained - init",
        ("+", ""),
        "trained - init",
        "xor_needless",
        "interaction_ratio",
    ),
    Prediction(
        "XOR accuracy, AND computed minus not",
        "0",
        "+",
        {"network": "trained", "target": ADVANTAGE, "score": "accuracy"},
        at_base=True,
    ),
    Prediction(
        "XOR accuracy, AND computed, trained - init",
        "0",
        "+",
        {"network": "trained - init", "target": "xor_computed", "score": "accuracy"},
        at_base=True,
    ),
    Prediction(
        "XOR accuracy of computed features, trained - init",
        "+",
        "0",
        {"network": "trained - init", "target": "xor_needless", "score": "accuracy"},
        at_base=True,
    ),
)


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
        rows.append(
            _leg("verdict", "every deciding leg", None, verdict, decides=False)
            | {"claim": claim, "excluded": _excluded(cells, claim)}
        )
    return superposition_cells.typed(pd.DataFrame(rows), VERDICT_COLUMNS)


def _excluded(cells: pd.DataFrame, claim: str) -> int:
    """Networks left out of the cells of a claim: each (setting, seed) once, however many scores, differences and
    slopes it is missing from.
    """
    own = cells[cells.experiment == "trained"] if claim in EXPLANATIONS else cells[cells.claim == claim]
    derived = own.score.str.endswith("_slope")
    for column in ("network", "target"):
        for mark in DERIVED:
            derived |= own[column].str.contains(mark, regex=False)
    once = [name for name in superposition_cells.FACTORS if name not in ("claim", "target", "readout", "score")]
    return int(own[~derived].groupby(once, dropna=False).excluded.max().sum())


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
    for score, network, decides in (
        ("interaction_ratio", "trained", True),
        ("interaction_ratio", "trained - init", True),
        ("interaction_ratio", "init", False),
        # Not scale-free: training changes the size of the activations with m/d as well.
        ("interaction", "trained", False),
    ):
        for setting in (FIXED_D, FIXED_M):
            at = {"network": network, "score": f"{score}_slope", "setting": setting}
            row = _only(cells, experiment="trained", target="xor_needless", **at)
            name = "ratio" if score == "interaction_ratio" else "raw ‖δ‖²"
            name = f"slope of the interaction ({name}) {setting}, {network}"
            legs.append(_leg(name, "interval > 0", row, _above(row, 0.0), decides=decides))
    return legs


def _c06(cells: pd.DataFrame) -> list[dict[str, object]]:
    at = {"experiment": "trained", "target": "xor_needless", **_base(cells)}
    accuracy = _only(cells, network="trained", score="accuracy", **at)
    difference = _only(cells, network="trained - init", score="accuracy", **at)
    selectivity = _only(cells, network="trained", score="selectivity", **at)
    worst = _only(cells, network="trained", score="worst_cell", **at)
    return [
        _leg("accuracy, trained", "interval > .5", accuracy, _above(accuracy, 0.5)),
        _leg("accuracy, trained - init", "interval > 0", difference, _above(difference, 0.0)),
        _leg("selectivity, trained", "interval > 0", selectivity, _above(selectivity, 0.0)),
        _leg("worst cell, trained (beyond OR)", "interval > .5", worst, _above(worst, 0.5), decides=False),
    ]


def _c07(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = []
    for seen in ("direct inputs", "superposed inputs"):
        built = _select(cells, experiment="constructed", network="designated", setting=seen)
        legs += _designated_legs(built, seen, decides=seen == "direct inputs")
    return legs


def _designated_legs(built: pd.DataFrame, seen: str, *, decides: bool) -> list[dict[str, object]]:
    """Superposed inputs interfere before any neuron is shared, so there nothing is claimed of p = 0."""
    accuracy = built[built.score == "accuracy"]
    shared, exclusive = accuracy[accuracy.p > 0].dropna(subset="lower"), accuracy[accuracy.p == 0]
    none = exclusive.iloc[0] if len(exclusive) else None
    best, p, named = None, float("nan"), ""
    if len(shared):
        adjusted = statistics.holm(_above_chance_p(shared))
        # The smallest p first, and of equal ones the largest accuracy.
        chosen = np.lexsort((-shared.estimate.to_numpy(), adjusted))[0]
        best, p = shared.iloc[chosen], float(adjusted[chosen])
        named = f" (best of {len(shared)}: m {best.m}, d {best.d}, s {best.s:g}, p {best.p:g}; Holm {p:.2g})"
    at = {} if best is None else {"m": best.m, "d": best.d, "s": best.s, "p": best.p}
    worst = None if best is None else _only(built, score="worst_cell", **at)
    selectivity = None if best is None else _only(built, score="selectivity", **at)
    trend = _only(built, score="accuracy_slope")
    significant = "yes" if p < 0.05 else "undecided"
    margin = CHANCE_MARGIN
    return [
        _leg(f"accuracy, {seen}{named}", "> .5 at 5% over all cells", best, significant, decides=decides),
        _leg(f"selectivity there, {seen}", "interval > 0", selectivity, _above(selectivity, 0.0), decides=decides),
        _leg(
            f"slope of accuracy on the analytic ‖δ‖², {seen}",
            "interval > 0",
            trend,
            _above(trend, 0.0),
            decides=decides,
        ),
        _leg(
            f"accuracy without shared neurons, {seen}",
            f"interval inside .5 ± {margin:g}",
            none,
            _inside(none, 0.5 - margin, 0.5 + margin),
            decides=decides,
        ),
        _leg(f"worst cell there (beyond OR), {seen}", "interval > .5", worst, _above(worst, 0.5), decides=False),
    ]


def _above_chance_p(rows: pd.DataFrame) -> np.ndarray:
    """Two-sided p-values of Student's test against .5, 1 where the mean is not above it; from the 95% intervals."""
    freedom = rows.n_networks.to_numpy() - 1
    half = (rows.upper - rows.estimate).to_numpy()
    excess = (rows.estimate - 0.5).to_numpy()
    # Networks that all agree have no spread, and any excess is then beyond doubt.
    ratio = np.divide(excess, half, out=np.where(excess > 0, np.inf, 0.0), where=half > 0)
    p = 2 * stats.t.sf(ratio * stats.t.ppf(0.975, freedom), freedom)
    return np.where(excess > 0, p, 1.0)


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
    geometry = cells[cells.experiment == "geometry"]
    pairs = _select(geometry, score="antipodal_pairs")
    for (m, d), group in _select(pairs, network="fixed").groupby(["m", "d"]):
        # Fixed directions know nothing of densities and kinds of data, so these cells are one and the same claim.
        name, highest = f"fixed, m {m}, d {d}, highest of {len(group)} cells", None
        if group.upper.notna().any():
            highest = group.loc[group.upper.idxmax()]
        # One pair in every network would be learning's doing; chance is far below it where d is not tiny.
        legs.append(_leg(name, "interval < 1", highest, _below(highest, 1.0)))
    for _, row in _select(pairs, network="learned").iterrows():
        legs.append(
            _leg(
                _geometry_name(row),
                "interval > chance",
                row,
                _above(row, row.level),
                decides=row.p < 0.5 or row.setting == "exclusive",
            )
        )
    for _, row in _select(geometry, score="partners").iterrows():
        name = f"partners among antipodal pairs, {_geometry_name(row)}"
        legs.append(_leg(name, "interval > chance", row, _above(row, row.level), decides=False))
    for _, row in _select(geometry, score="subspaces").iterrows():
        name, learned = f"orthogonal subspaces, {_geometry_name(row)}", row.network == "learned"
        holds = _above(row, 1.0) if learned else _below(row, 2.0)
        legs.append(_leg(name, "interval > 1" if learned else "interval < 2", row, holds, decides=False))
    return legs


def _geometry_name(row: pd.Series) -> str:
    return f"{row.network}, {row.setting}, m {row.m}, d {row.d}, density {row.p:g}"


def _c21(cells: pd.DataFrame) -> list[dict[str, object]]:
    built = _select(cells, experiment="constructed", network="bernoulli", setting="")
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
    """A ratio of errors compares two first layers only where the trained one does better than no layer at all."""
    own = cells[cells.experiment == "genericity"]
    legs = []
    for _, row in own[own.network == "frozen / trained"].iterrows():
        at = {name: row[name] for name in ("target", "setting", "m", "d", "s")}
        score = row.score.removesuffix("_ratio")
        trained, frozen = (_only(own, network=name, score=score, **at) for name in ("trained", "frozen"))
        solved = _below(_only(own, network="trained", score="max_error", **at), AFFINE_ERROR[row.target]) == "yes"
        claimed = row.setting.endswith(" weighted") and int(row.setting[1:].split()[0]) > 2
        errors = "" if trained is None or frozen is None else f": {frozen.estimate:.3f} / {trained.estimate:.3f}"
        failed = "" if solved else ", trained no better than affine"
        name = f"{row.score}, {row.target}, {row.setting}, d {row.d}{errors}{failed}"
        holds = _below(row, 2.0) if solved else "undecided"
        legs.append(_leg(name, "interval ≤ 2", row, holds, decides=claimed and solved))
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
        legs.append(_leg(name, "> .5" if collapses else "< .5", row, holds))
    return legs


def _explanation(cells: pd.DataFrame, own: str) -> list[dict[str, object]]:
    """Every quantity of `PREDICTIONS` of which an explanation says something; those where the two differ decide."""
    legs = []
    trained = cells[cells.experiment == "trained"]
    base = _base(cells)
    for prediction in PREDICTIONS:
        sign = getattr(prediction, own)
        if not sign:
            continue
        said = f"interference {prediction.interference or 'silent'}, for free {prediction.for_free or 'silent'}"
        rows = _select(trained, **prediction.where)
        if not prediction.at_base:
            row = _only(rows)
            legs.append(_leg(prediction.quantity, said, row, _signed(row, sign), decides=prediction.decides))
            continue
        row = _only(rows, **base)
        name = f"{prediction.quantity}, at the base cell"
        legs.append(_leg(name, said, row, _signed(row, sign), decides=prediction.decides))
        roomier = _select(rows, **{name: base[name] for name in ("s", "depth") if name in base})
        for _, row in roomier[roomier.m / roomier.d < base.get("m", 0) / base.get("d", 1)].iterrows():
            name = f"{prediction.quantity}, only with room: m {row.m}, d {row.d}"
            legs.append(_leg(name, said, row, _signed(row, sign), decides=False))
    return legs


def _signed(row: pd.Series | None, sign: str) -> str:
    if sign == "0":
        return _inside(row, -CHANCE_MARGIN, CHANCE_MARGIN)
    return _above(row, 0.0) if sign == "+" else _below(row, 0.0)


def _interference(cells: pd.DataFrame) -> list[dict[str, object]]:
    return _explanation(cells, "interference")


def _for_free(cells: pd.DataFrame) -> list[dict[str, object]]:
    legs = _explanation(cells, "for_free")
    ratios = _select(cells, experiment="genericity", score="rms_error_ratio", target="xor / and")
    for _, row in ratios.dropna(subset="estimate").iterrows():
        name = f"error of XOR over error of AND, random layer, m {row.m}, d {row.d}, s {row.s:g}"
        legs.append(_leg(name, "interval inside 2 ± .25", row, _inside(row, 1.75, 2.25), decides=False))
    built = cells[cells.experiment == "constructed"]
    ratios = _select(built, score="rms_error_ratio", target="xor / and").dropna(subset="estimate")
    for _, row in ratios[(ratios.d == ratios.d.max()) & (ratios.readout != "mean_centred")].iterrows():
        name = f"error of XOR over error of AND, U-AND, {row.readout}, {row.setting}, d {row.d}, s {row.s:g}"
        legs.append(_leg(name, "interval inside 2 ± .25", row, _inside(row, 1.75, 2.25), decides=False))
    more = _select(built, network="bernoulli - random", score="accuracy").dropna(subset="estimate")
    for _, row in more[more.d == more.d.max()].iterrows():
        name = f"XOR accuracy, U-AND minus a random layer, {row.setting}, d {row.d}, s {row.s:g}"
        legs.append(_leg(name, "interval > 0", row, _above(row, 0.0), decides=False))
    return legs


def _not_run(_: pd.DataFrame) -> list[dict[str, object]]:
    return []


EXPLANATIONS = ("interference", "for free")
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
