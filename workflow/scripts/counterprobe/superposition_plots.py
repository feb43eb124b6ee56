"""Figures of the toy networks: every measurement with its interval, and beside it what was predicted.

Solid lines and marks are measured (means over networks, 95% intervals over networks); dashed black lines are
predictions with nothing fitted, grey lines levels without information. Each figure has the rows it shows as
its CSV.
"""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import plots

TARGET_STYLES = {
    "xor_needless": (plots.VERMILION, "s", "XOR of two computed features (needless)"),
    "xor_computed": (plots.GREEN, "o", "XOR of two inputs whose AND is computed"),
    "xor_uncomputed": (plots.SKY, "^", "XOR of two inputs of which nothing is"),
}
DASHED = (0, (4, 2))
FIGURES = ("trained", "constructed", "genericity", "redundancy", "geometry")


def draw(name: str, cells: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The figure of one experiment and the rows it is drawn from."""
    plots.theme()
    rows = cells[cells.experiment == name]
    figure = {
        "trained": _trained,
        "constructed": _constructed,
        "genericity": _genericity,
        "redundancy": _redundancy,
        "geometry": _geometry,
    }[name](rows)
    plots.sns.despine(figure)
    figure.tight_layout()
    return figure, rows


def _measured(
    axis: Axes,
    rows: pd.DataFrame,
    x: str,
    colour: object,
    marker: str = "o",
    label: str = "",
    *,
    line: str = "-",
) -> None:
    shown = rows.dropna(subset="estimate").sort_values(x)
    low, high = shown.estimate - shown.lower, shown.upper - shown.estimate
    axis.errorbar(
        shown[x],
        shown.estimate,
        yerr=np.nan_to_num(np.stack([low, high])),
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.2,
        linestyle=line,
        capsize=2,
        label=label,
    )


def _predicted(axis: Axes, rows: pd.DataFrame, x: str, label: str = "prediction") -> None:
    shown = rows.dropna(subset="prediction").sort_values(x)
    known = label not in axis.get_legend_handles_labels()[1]
    axis.plot(
        shown[x],
        shown.prediction,
        color=plots.BLACK,
        linestyle=DASHED,
        linewidth=1,
        label=label if known else None,
    )


def _trained(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.0))
    slopes = rows[rows.score == "accuracy_slope"]
    m, d = slopes.m.max(), slopes.d.max()
    s, depth = slopes.s.iloc[0], slopes.depth.iloc[0]
    rows = rows[(rows.s == s) & (rows.depth == depth)].assign(crowding=rows.m / rows.d)
    sweeps = ((rows[rows.d == d], f"m varies, d = {d}"), (rows[rows.m == m], f"d varies, m = {m}"))
    for line, (swept, title) in zip(axes, sweeps, strict=True):
        for axis, score in zip(line, ("accuracy", "interaction_ratio"), strict=False):
            for target, (colour, marker, label) in TARGET_STYLES.items():
                of_target = swept[(swept.target == target) & (swept.score == score)]
                _measured(axis, of_target[of_target.network == "trained"], "crowding", colour, marker, label)
                init = of_target[of_target.network == "init"]
                _measured(axis, init, "crowding", colour, marker, f"{label}, random weights", line=":")
            axis.set_title(title)
        line[0].axhline(plots.CHANCE, color=plots.GREY, linewidth=1)
        line[0].axhline(plots.OR_CAP, color=plots.GREY, linewidth=1, linestyle=DASHED)
        line[0].set_ylabel("held-out accuracy")
        line[1].set_yscale("symlog", linthresh=0.01)
        line[1].set_ylabel("‖δ‖² / (‖d_a‖ ‖d_b‖)")
        differences = (
            (
                "xor_needless",
                "trained - init",
                plots.VERMILION,
                "s",
                "needless XOR: trained - random weights",
            ),
            (
                "xor_computed - xor_uncomputed",
                "trained",
                plots.GREEN,
                "o",
                "AND computed - not computed, trained",
            ),
        )
        for target, network, colour, marker, label in differences:
            chosen = swept[(swept.target == target) & (swept.network == network) & (swept.score == "accuracy")]
            _measured(line[2], chosen, "crowding", colour, marker, label)
        line[2].axhline(0, color=plots.GREY, linewidth=1)
        line[2].set_ylabel("difference of accuracies")
        line[2].set_title("interference: red > 0 and rising\nfor free: green > 0 and falling", fontsize=8)
        for axis in line:
            axis.set_xscale("log", base=2)
    for axis in axes[1]:
        axis.set_xlabel("features per dimension, m/d")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, fontsize=7, frameon=False, bbox_to_anchor=(0.5, -0.06))
    axes[0, 2].legend(fontsize=6, frameon=False)
    return figure


def _constructed(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13.0, 3.2))
    errors = rows[(rows.network == "bernoulli") & (rows.score == "max_error")]
    colours = dict(zip(sorted(errors.s.unique()), (plots.BLUE, plots.VERMILION, plots.GREEN), strict=False))
    for axis, readout in zip(axes, ("mean", "mean_centred"), strict=False):
        for s, colour in colours.items():
            shown = errors[(errors.s == s) & (errors.readout == readout)]
            _measured(axis, shown, "d", colour, "o", f"{s:g} inputs on")
            _predicted(axis, shown[shown.n_networks > 0], "d", "mean error predicted")
        missing = errors[errors.n_networks == 0].d
        if len(missing):
            axis.axvspan(missing.min() / 2, missing.max(), color=plots.GREY, alpha=0.25, linewidth=0, label="p > 1")
        axis.axhline(0.25, color=plots.GREY, linewidth=1)
        axis.axvspan(1024, 4096, color=plots.SKY, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("neurons d")
        axis.set_title(f"Bernoulli U-AND, {readout.replace('_', ', ')} read-off")
    axes[0].set_ylabel("maximal error of AND")
    axes[0].legend(fontsize=6, frameon=False)
    built = rows[rows.network == "designated"]
    counts = built[built.score == "accuracy"].groupby(["m", "d", "s"]).p.nunique()
    m, d, s = counts.idxmax()
    for setting, colour in (("direct inputs", plots.BLUE), ("superposed inputs", plots.ORANGE)):
        at = built[(built.setting == setting) & (built.m == m) & (built.d == d) & (built.s == s)]
        _measured(axes[2], at[at.score == "accuracy"], "p", colour, "o", setting)
    axes[2].axhline(plots.CHANCE, color=plots.BLACK, linewidth=1, linestyle=DASHED, label="no shared neuron")
    axes[2].set_xlabel("probability p of serving a feature")
    axes[2].set_ylabel("XOR accuracy")
    axes[2].set_title(f"nothing spent on XOR, m {m}, d {d}")
    axes[2].legend(fontsize=6, frameon=False)
    interaction = built[(built.score == "interaction") & (built.setting == "direct inputs")]
    _measured(axes[3], interaction, "prediction", plots.BLUE, "o", "measured", line="none")
    _predicted(axes[3], interaction, "prediction", "analytic")
    axes[3].set_xlabel("analytic ‖δ‖²")
    axes[3].set_ylabel("measured ‖δ‖²")
    axes[3].set_title("interaction from shared neurons")
    axes[3].legend(loc="lower right", fontsize=6, frameon=False)
    return figure


def _genericity(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13.0, 3.3))
    errors = rows[(rows.score == "rms_error") & (rows.target == "and") & (rows.readout == "indicator")]
    kinds = errors[["setting", "s"]].drop_duplicates().sort_values(["setting", "s"])
    palette = plots.sns.color_palette("viridis", len(kinds))
    for colour, (_, kind) in zip(palette, kinds.iterrows(), strict=True):
        shown = errors[(errors.setting == kind.setting) & (errors.s == kind.s)]
        mean = "mean " if kind.setting == "varying s" else ""
        _measured(axes[0], shown, "d", colour, "o", f"{kind.setting}, {mean}{kind.s:g} on", line="none")
        _predicted(axes[0], shown, "d", "theory, nothing fitted")
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log")
    axes[0].set_title("indicator read-off of AND, random W")
    axes[0].set_ylabel("RMS error")
    solved = rows[(rows.readout == "minimax") & (rows.network == "random")]
    for target, colour, exact in (("and", plots.BLUE, 0.25), ("xor", plots.VERMILION, 0.5)):
        _measured(axes[1], solved[solved.target == target], "d", colour, "o", f"{target.upper()}, random layer")
        label = "best affine, of the inputs"
        axes[1].axhline(
            exact, color=plots.BLACK, linestyle=DASHED, linewidth=1, label=label if target == "and" else None
        )
    axes[1].set_xscale("log", base=2)
    axes[1].set_title("minimax read-off")
    axes[1].set_ylabel("maximal error")
    ratios = rows[(rows.network == "frozen / trained") & (rows.score == "max_error_ratio")]
    widths = sorted(ratios.d.unique())
    settings = sorted(ratios.setting.unique())
    for width, marker in zip(widths, "os^D", strict=False):
        for target, colour in (("and", plots.BLUE), ("xor", plots.VERMILION)):
            shown = ratios[(ratios.d == width) & (ratios.target == target)]
            shown = shown.assign(place=shown.setting.map(settings.index))
            _measured(axes[2], shown, "place", colour, marker, f"{target.upper()}, d {width}", line="none")
    axes[2].axhline(1, color=plots.GREY, linewidth=1)
    axes[2].axhline(2, color=plots.BLACK, linewidth=1, linestyle=DASHED, label="claimed bound")
    axes[2].set_title("maximal error, frozen / trained first layer")
    outputs = rows[(rows.score == "output_on_ones") & (rows.target == "and") & (rows.network == "trained")]
    for width, marker in zip(widths, "os^D", strict=False):
        shown = outputs[outputs.d == width].assign(place=lambda table: table.setting.map(settings.index))
        _measured(axes[3], shown, "place", plots.BLUE, marker, f"d {width}", line="none")
    axes[3].axhline(0, color=plots.BLACK, linewidth=1, linestyle=DASHED, label="collapse")
    axes[3].axhline(1, color=plots.GREY, linewidth=1)
    axes[3].set_title("output where the AND is 1")
    for axis in axes[2:]:
        axis.set_xticks(range(len(settings)), settings, rotation=40, ha="right", fontsize=6)
    for axis in axes[:2]:
        axis.set_xlabel("neurons d")
    for axis in axes:
        axis.legend(fontsize=6, frameon=False)
    return figure


def _redundancy(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13.0, 3.2), sharey=True)
    accuracy = rows[(rows.target == "xor") & (rows.score == "accuracy")].dropna(subset="estimate")
    gamma = float(rows[rows.score == "gamma"].estimate.iloc[0])
    accuracy = accuracy.assign(
        by_gamma=accuracy.d / accuracy.m**gamma, by_pairs=accuracy.d / (accuracy.m * (accuracy.m - 1) / 2)
    )
    explained = rows[rows.score == "explained"].set_index("setting").estimate
    panels = (
        ("d", "d", "dimensions d = k·r"),
        ("copies", "r", "copies r"),
        ("by_pairs", "d / (k choose 2)", "d / (k choose 2)"),
        ("by_gamma", "d / k^gamma", f"d / k^{gamma:.2f}"),
    )
    palette = plots.sns.color_palette("viridis", accuracy.m.nunique())
    for axis, (column, name, label) in zip(axes, panels, strict=True):
        for colour, (k, group) in zip(palette, accuracy.groupby("m"), strict=True):
            _measured(axis, group, column, colour, "o", f"k = {k}", line="none")
        axis.axhline(plots.CHANCE, color=plots.GREY, linewidth=1)
        for bar in (0.55, 0.9):
            axis.axhline(bar, color=plots.BLACK, linewidth=0.8, linestyle=DASHED)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
        axis.set_title(f"monotone fit explains {explained.get(name, np.nan):.3f}")
    axes[0].set_ylabel("XOR accuracy")
    axes[3].legend(loc="center right", fontsize=6, frameon=False, title="dashed: claimed bars", title_fontsize=6)
    return figure


def _geometry(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(10.0, 3.2))
    counts = rows[rows.score == "antipodal_pairs"]
    sizes = counts.groupby(["m", "d"]).p.nunique()
    m, d = sizes.idxmax()
    base = counts[(counts.m == m) & (counts.d == d)]
    styles = (("learned", plots.BLUE, "o"), ("fixed", plots.ORANGE, "s"))
    for axis, data in zip(axes, ("independent", "exclusive"), strict=False):
        for network, colour, marker in styles:
            shown = base[(base.setting == data) & (base.network == network)]
            _measured(axis, shown, "p", colour, marker, f"{network} directions")
            _predicted(axis, shown, "p", "chance")
        axis.set_xscale("log")
        axis.set_xlabel("density of a feature")
        axis.set_title(f"{data} features, m {m}, d {d}")
    axes[0].set_ylabel("antipodal pairs")
    swept = rows[(rows.score == "subspaces") & (rows.setting == "independent")]
    density = swept.groupby("p").d.nunique().idxmax()
    for network, colour, marker in styles:
        shown = swept[(swept.p == density) & (swept.network == network)]
        _measured(axes[2], shown, "d", colour, marker, f"{network} directions")
        _predicted(axes[2], shown, "d", "one subspace")
    axes[2].set_xlabel("dimensions d (m = 2d)")
    axes[2].set_ylabel("subspaces of ≥ 2 features")
    axes[2].set_title(f"density {density:g}")
    for axis in axes:
        axis.legend(fontsize=6, frameon=False)
    return figure
