"""The figure of probe capacity: what larger probes read, and what of it stands out (C33)."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import designs, plots

TRAINED = "trained"
NAMES = {"mass_mean": "mass mean", "lda": "LDA", "logistic": "logistic", "quadratic": "quadratic"}
ORDER = tuple(NAMES)
ABOVE_RUNG = "above_rung"


def rows(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """Accuracy under trained weights and every rung, and selectivity, at the last revision; and accuracy above the rung
    that reads a target best with the same probe.
    """
    shown = table[(table.model == model) & (table.design == design.name) & (table.probe != "none")]
    shown = shown[shown.step == shown.step.max()]
    accuracy = shown[(shown.control == "none")]
    rungs = accuracy[accuracy.weights != TRAINED]
    if not len(rungs):
        return shown
    best = rungs.loc[rungs.groupby(["target", "probe"]).estimate.idxmax()].set_index(["target", "probe"])
    trained = accuracy[accuracy.weights == TRAINED]
    strongest = best.loc[list(zip(trained.target, trained.probe, strict=True))]
    above = trained.assign(
        score=ABOVE_RUNG,
        level=0.0,
        estimate=trained.estimate.to_numpy() - strongest.estimate.to_numpy(),
        lower=np.nan,
        upper=np.nan,
        note=strongest.weights.to_numpy(),
    )
    return pd.concat([shown, above], ignore_index=True)


def families(shown: pd.DataFrame) -> list[str]:
    """In the order of their capacity."""
    found = set(shown.probe)
    perceptrons = sorted((name for name in found if name.startswith("mlp_")), key=lambda name: int(name[4:]))
    return [*(name for name in ORDER if name in found), *perceptrons]


def draw(shown: pd.DataFrame, design: designs.Design) -> Figure:
    """Accuracy, selectivity against dichotomies, and accuracy above the strongest rung; one line a target."""
    plots.theme()
    order = families(shown)
    targets = [target for target in designs.targets(design) if (shown.target == target).any()]
    styles = dict(zip(targets, zip(sns.color_palette("colorblind"), "osD^vPX*<>", strict=True), strict=False))
    figure, axes = plots.panels(4, sharey=False, height=2.9)
    plain = shown[(shown.control == "none") & (shown.score != ABOVE_RUNG)]
    for target, (colour, marker) in styles.items():
        of_target, accuracy = (rows[rows.target == target] for rows in (shown, plain))
        name = plots.label(target, design.aliases)
        line(axes[0], accuracy[accuracy.weights == TRAINED], order, colour, marker, name)
        best = accuracy[accuracy.weights != TRAINED].groupby("probe").estimate.max().reindex(order)
        axes[0].plot(range(len(order)), best, color=colour, linestyle="--", linewidth=0.9)
        line(axes[1], of_target[of_target.score == "selectivity"], order, colour, marker)
        line(axes[2], of_target[of_target.score == ABOVE_RUNG], order, colour, marker)
    axes[0].axhline(plots.CHANCE, color=plots.BLACK, linewidth=0.6)
    axes[0].set_title("accuracy (dashed: strongest rung)")
    axes[1].set_title("above dichotomies (selectivity)")
    axes[2].set_title("above the strongest rung")
    for axis in axes[1:3]:
        axis.axhline(0, color=plots.BLACK, linewidth=0.6)
    for axis in axes[:3]:
        axis.set_xticks(range(len(order)), [NAMES.get(n, n.replace("mlp_", "MLP ")) for n in order], rotation=60)
    axes[3].axis("off")
    axes[3].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.tight_layout()
    return figure


def line(axis: Axes, rows: pd.DataFrame, order: list[str], colour: object, marker: str, name: str = "") -> None:
    """One target over the families, with its 95% interval."""
    if not len(rows):
        return
    at = rows.set_index("probe").reindex(order)
    places = range(len(order))
    axis.plot(places, at.estimate, color=colour, marker=marker, markersize=4, label=name)
    axis.fill_between(places, at.lower, at.upper, color=colour, alpha=0.12, linewidth=0)
