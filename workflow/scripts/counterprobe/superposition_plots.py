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
from matplotlib.ticker import MaxNLocator

from counterprobe import plots, superposition

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
    fill: object = None,
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
        markerfacecolor=fill if fill is not None else colour,
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


def _legend(axis: Axes, ncols: int = 1, below: float = 0.28) -> None:
    """Below the axis and its labels, where no data are."""
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -below),
        ncols=ncols,
        fontsize=6,
        frameon=False,
    )


def _dodged(rows: pd.DataFrame, x: str, place: int, step: float = 1.05) -> pd.DataFrame:
    """Moved along a logarithmic axis, so that series with equal values do not hide each other."""
    return rows.assign(**{x: rows[x] * step**place})


def _trained(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.0))
    slopes = rows[rows.score == "accuracy_slope"]
    m, d = slopes.m.max(), slopes.d.max()
    s, depth = slopes.s.iloc[0], slopes.depth.iloc[0]
    rows = rows[(rows.s == s) & (rows.depth == depth)].assign(crowding=rows.m / rows.d)
    sweeps = ((rows[rows.d == d], f"m varies, d = {d}"), (rows[rows.m == m], f"d varies, m = {m}"))
    for line, (swept, title) in zip(axes, sweeps, strict=True):
        for axis, score in zip(line, ("accuracy", "interaction_ratio"), strict=False):
            for place, (target, (colour, marker, label)) in enumerate(TARGET_STYLES.items(), -1):
                of_target = swept[(swept.target == target) & (swept.score == score)]
                of_target = _dodged(of_target, "crowding", place)
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
        line[2].set_title("interference: red > 0, green rising\nfor free: red 0, green > 0 and falling", fontsize=8)
        for axis in line:
            axis.set_xscale("log", base=2)
    for axis in axes[1]:
        axis.set_xlabel("features per dimension, m/d")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, fontsize=7, frameon=False, bbox_to_anchor=(0.5, -0.06))
    _legend(axes[1, 2])
    return figure


def _constructed(rows: pd.DataFrame) -> Figure:
    figure, (axes, lower) = plt.subplots(2, 4, figsize=(13.0, 7.0))
    errors = rows[(rows.network == "bernoulli") & (rows.setting == "") & (rows.score == "max_error")]
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
        _legend(axis)
    axes[0].set_ylabel("maximal error of AND")
    built = rows[rows.network == "designated"]
    counts = built[built.score == "accuracy"].groupby(["m", "d", "s"]).p.nunique()
    m, d, s = counts.idxmax()
    for setting, colour in (("superposed inputs", plots.ORANGE), ("direct inputs", plots.BLUE)):
        at = built[(built.setting == setting) & (built.m == m) & (built.d == d) & (built.s == s)]
        _measured(axes[2], at[at.score == "accuracy"], "p", colour, "o", setting)
    label = "direct inputs without shared neurons, predicted"
    axes[2].axhline(plots.CHANCE, color=plots.BLUE, linewidth=1, linestyle=DASHED, label=label)
    axes[2].set_xlabel("probability p of serving a feature")
    axes[2].set_ylabel("XOR accuracy")
    axes[2].set_title(f"nothing spent on XOR, m {m}, d {d}")
    _legend(axes[2])
    interaction = built[(built.score == "interaction") & (built.setting == "direct inputs")]
    _measured(axes[3], interaction, "prediction", plots.BLUE, "o", "measured", line="none")
    _predicted(axes[3], interaction, "prediction", "analytic")
    axes[3].set_xlabel("analytic ‖δ‖²")
    axes[3].set_ylabel("measured ‖δ‖²")
    axes[3].set_title("interaction from shared neurons")
    _legend(axes[3])
    _xor_of_and(lower, rows[rows.network.isin(["bernoulli", "random"]) & (rows.setting != "")])
    return figure


def _xor_of_and(axes: np.ndarray, rows: pd.DataFrame) -> None:
    """Errors of XOR read as x + y - 2 AND beside twice those of AND, and what probes find of the XOR."""
    read = rows[rows.s == rows[rows.readout == "mean"].s.min()]
    m, s = read.m.max(), read.s.max()
    colours = dict(zip(sorted(read.setting.unique()), (plots.BLUE, plots.ORANGE, plots.VERMILION), strict=False))
    readouts = (("mean", "o", "x, y from the input", "-"), ("mean_hidden", "^", "x, y from the layer", ":"))
    for axis, score, name in (
        (axes[0], "max_error", "maximal error of XOR"),
        (axes[1], "threshold_accuracy", "XOR right at threshold 1/2"),
    ):
        for setting, colour in colours.items():
            of_setting = read[(read.setting == setting) & (read.score == score)]
            for readout, marker, label, line in readouts:
                shown = of_setting[(of_setting.target == "xor") & (of_setting.readout == readout)]
                _measured(axis, shown, "d", colour, marker, f"{setting}; {label}", line=line)
                if score == "max_error":
                    _predicted(axis, shown[shown.n_networks > 0], "d", "mean error predicted")
        axis.set_ylabel(name)
        axis.set_title(f"XOR from U-AND, m {m}, {s:g} inputs on")
    axes[0].axhline(0.5, color=plots.GREY, linewidth=1)
    axes[0].set_yscale("log")
    axes[1].axhline(plots.CHANCE, color=plots.GREY, linewidth=1)
    for setting, colour in colours.items():
        for readout, marker, label, line in readouts:
            shown = read[(read.setting == setting) & (read.readout == readout) & (read.score == "rms_error_ratio")]
            _measured(axes[2], shown, "d", colour, marker, f"{setting}; {label}", line=line)
    axes[2].axhline(2, color=plots.BLACK, linestyle=DASHED, linewidth=1, label="predicted: 2")
    axes[2].set_yscale("log", base=2)
    axes[2].set_ylabel("RMS error, XOR / AND")
    axes[2].set_title("twice the error of AND")
    probed = rows[rows.readout == "logistic"]
    primary = probed[probed.s == probed.s.min()]
    levels = primary[(primary.score == "accuracy") & (primary.target == "xor")]
    gaps = primary[primary.score == "selectivity"].set_index(["network", "setting", "d"]).estimate
    for setting, colour in colours.items():
        for network, marker, line in (("bernoulli", "o", "-"), ("random", "s", "--")):
            shown = levels[(levels.setting == setting) & (levels.network == network)].sort_values("d")
            _measured(axes[3], shown, "d", colour, marker, f"{setting}; {network} layer", line=line)
            dichotomies = shown.estimate - [gaps[network, setting, d] for d in shown.d]
            axes[3].plot(shown.d, dichotomies, color=colour, marker=marker, markersize=2, linewidth=0.6, linestyle=":")
    axes[3].plot([], [], color=plots.GREY, linewidth=0.6, linestyle=":", label="random dichotomies")
    axes[3].axhline(plots.CHANCE, color=plots.GREY, linewidth=1)
    axes[3].set_ylabel("probed XOR accuracy")
    axes[3].set_title(f"XOR probed in the layer, {primary.s.min():g} on")
    missing = read[(read.score == "max_error") & (read.n_networks == 0)].d
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("neurons d")
        if len(missing):
            axis.axvspan(missing.min() / 1.4, missing.max(), color=plots.GREY, alpha=0.25, linewidth=0, label="p > 1")
        _legend(axis)


def _genericity(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(15.0, 4.0), width_ratios=(1, 1, 1.6, 1.2))
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
    for place, (target, colour) in enumerate((("and", plots.BLUE), ("xor", plots.VERMILION))):
        shown = _dodged(solved[solved.target == target], "d", place)
        _measured(axes[1], shown, "d", colour, "o", f"{target.upper()}, random layer")
        exact = superposition.AFFINE_ERROR[target]
        axes[1].axhline(exact, color=plots.BLACK, linestyle=DASHED, linewidth=1)
        said = f"{target.upper()}, best affine of the inputs"
        axes[1].annotate(
            said,
            (0 if target == "and" else 1, exact),
            xycoords=("axes fraction", "data"),
            xytext=(3, 3),
            textcoords="offset points",
            ha="left" if target == "and" else "right",
            fontsize=6,
        )
    axes[1].set_xscale("log", base=2)
    axes[1].set_title("minimax read-off")
    axes[1].set_ylabel("maximal error")
    ratios = rows[(rows.network == "frozen / trained") & (rows.score == "max_error_ratio")]
    widths = sorted(ratios.d.unique())
    settings = sorted(ratios.setting.unique())
    trained = rows[(rows.network == "trained") & (rows.score == "max_error")]
    trained = trained.set_index(["target", "setting", "d"]).upper
    series = [
        (width, marker, target) for width, marker in zip(widths, "os^D", strict=False) for target in ("and", "xor")
    ]
    for index, (width, marker, target) in enumerate(series):
        colour = plots.BLUE if target == "and" else plots.VERMILION
        shown = ratios[(ratios.d == width) & (ratios.target == target)]
        place = shown.setting.map(settings.index) + (index - (len(series) - 1) / 2) * 0.8 / len(series)
        solved = shown.setting.map(lambda name, t=target, d=width: trained[t, name, d] < superposition.AFFINE_ERROR[t])
        shown = shown.assign(place=place)
        _measured(axes[2], shown[~solved], "place", colour, marker, line="none", fill="white")
        _measured(axes[2], shown[solved], "place", colour, marker, f"{target.upper()}, d {width}", line="none")
    axes[2].axhline(1, color=plots.GREY, linewidth=1)
    axes[2].axhline(2, color=plots.BLACK, linewidth=1, linestyle=DASHED, label="claimed bound")
    axes[2].set_title(
        "maximal error, frozen / trained first layer\n(hollow: trained is no better than affine)", fontsize=8
    )
    outputs = rows[(rows.score == "output_on_ones") & (rows.target == "and") & (rows.network == "trained")]
    shades = plots.sns.color_palette("Blues", len(widths) + 1)[1:]
    for index, (width, marker, colour) in enumerate(zip(widths, "os^D", shades, strict=False)):
        shown = outputs[outputs.d == width]
        shown = shown.assign(place=shown.setting.map(settings.index) + (index - (len(widths) - 1) / 2) * 0.22)
        _measured(axes[3], shown, "place", colour, marker, f"d {width}", line="none")
    axes[3].axhline(0, color=plots.BLACK, linewidth=1, linestyle=DASHED, label="collapse")
    axes[3].axhline(1, color=plots.GREY, linewidth=1)
    axes[3].set_title("output where the AND is 1")
    for axis in axes[2:]:
        axis.set_xticks(range(len(settings)), settings, rotation=40, ha="right", fontsize=6)
    for axis in axes[:2]:
        axis.set_xlabel("neurons d")
    for axis, ncols, below in zip(axes, (1, 1, 3, 2), (0.28, 0.28, 0.42, 0.42), strict=True):
        _legend(axis, ncols, below)
    return figure


def _redundancy(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(13.0, 3.2), sharey=True)
    accuracy = rows[(rows.target == "xor") & (rows.score == "accuracy")].dropna(subset="estimate")
    gamma = float(rows[rows.score == "gamma"].estimate.iloc[0])
    accuracy = accuracy.assign(
        by_gamma=accuracy.d / accuracy.m**gamma, by_pairs=accuracy.d / (accuracy.m * (accuracy.m - 1) / 2)
    )
    left_out = rows[rows.score == "gamma_left_out"].estimate
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
        for (k, r), bar in ((superposition.REDUNDANT, 0.9), (superposition.DISTINCT, 0.55)):
            bound = accuracy[(accuracy.m == k) & (accuracy.copies == r)]
            for at in bound[column]:
                ends = (at / 1.6, at * 1.6)
                axis.plot(ends, (bar, bar), color=plots.BLACK, linestyle=DASHED, linewidth=1, zorder=3)
                said = f"{k} × {r}: {'≥' if bar > 0.6 else '≤'} {bar:g}"
                axis.annotate(said, (at, bar), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=6)
        axis.plot([], [], color=plots.BLACK, linestyle=DASHED, linewidth=1, label="claimed bar")
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
        axis.set_title(f"monotone fit explains {explained.get(name, np.nan):.3f}")
    axes[0].set_ylabel("XOR accuracy")
    low, high = left_out.min(), left_out.max()
    axes[3].set_xlabel(f"d / k^{gamma:.2f} ({low:.2f} to {high:.2f} without one k)")
    _legend(axes[0], 3)
    return figure


def _geometry(rows: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(10.0, 3.2))
    counts = rows[rows.score == "antipodal_pairs"]
    sizes = counts.groupby(["m", "d"]).p.nunique()
    m, d = sizes.idxmax()
    base = counts[(counts.m == m) & (counts.d == d)]
    styles = (("learned", plots.BLUE, "o"), ("fixed", plots.ORANGE, "s"))
    for axis, data in zip(axes, ("independent", "exclusive"), strict=False):
        for place, (network, colour, marker) in enumerate(styles):
            shown = _dodged(base[(base.setting == data) & (base.network == network)], "p", place)
            _measured(axis, shown, "p", colour, marker, f"{network} directions")
            _predicted(axis, shown, "p", "chance")
        axis.set_xscale("log")
        densities = sorted(base[base.setting == data].p.unique())
        axis.set_xticks(densities, [f"{density:g}" for density in densities])
        axis.minorticks_off()
        axis.set_xlabel("density of a feature")
        axis.set_title(f"{data} features, m {m}, d {d}")
    axes[0].set_ylabel("antipodal pairs")
    swept = rows[(rows.score == "subspaces") & (rows.setting == "independent")]
    density = swept.groupby("p").d.nunique().idxmax()
    for place, (network, colour, marker) in enumerate(styles):
        shown = _dodged(swept[(swept.p == density) & (swept.network == network)], "d", place, 1.01)
        _measured(axes[2], shown, "d", colour, marker, f"{network} directions")
        _predicted(axes[2], shown, "d", "one subspace")
    axes[2].set_xlabel("dimensions d (m = 2d)")
    axes[2].set_ylabel("subspaces")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set_title(f"groups of ≥ 2 features, density {density:g}")
    for axis in axes:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axis)
    return figure
