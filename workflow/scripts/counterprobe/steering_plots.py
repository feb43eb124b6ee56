"""The figure of steering: what each direction moves against what else it moves, dose by dose."""

import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from counterprobe import designs, plots

# Colour and marker of the directions that are compared; others are grey.
STYLES = {
    "diff_mean": (plots.BLUE, "o", "DiffMean"),
    "logistic": (plots.VERMILION, "s", "logistic probe"),
    "surgical_regressed": (plots.GREEN, "^", "surgical (regressed)"),
    "surgical_pinv": (plots.SKY, "v", "surgical (pinv of probes)"),
    "lda": (plots.ORANGE, "D", "LDA"),
    "gradient": (plots.PURPLE, "P", "gradient of the read-out"),
    "leace": (plots.BLACK, "X", "LEACE"),
}
OTHERS = "other directions"
MATRICES = ("diff_mean", "logistic", "surgical_regressed", "gradient")
NOT_DOSES = ("none", "reach", "chosen", "equal", "matched", "got", "read", "detect", "generated", "divergence")
WIDTH_OF_TEXT = 150
PLACES = {
    "generated": "every token from the text's last on",
    "answer": "the answer's own token",
    "all": "every token",
    "front": "the first tokens",
}


def rows(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """What was measured at the last revision that has doses; direction and dose as columns of their own."""
    shown = table[(table.model == model) & (table.design == design.name)]
    parts = shown.probe.str.rsplit(":", n=1, expand=True).reindex(columns=range(2))
    shown = shown.assign(direction=parts[0], setting=parts[1].fillna("none"))
    dosed = shown[~shown.setting.isin(NOT_DOSES)]
    return shown[shown.step == dosed.step.max()] if len(dosed) else shown.iloc[:0]


def draw(shown: pd.DataFrame, design: designs.Design) -> Figure:
    """Pareto curves and dose responses of every feature, matrices of four directions, texts before and after."""
    plots.theme()
    features = [name for name in design.readouts if (shown.target == name).any()]
    features += sorted(set(shown[shown.setting.eq("chosen") & shown.estimate.notna()].target) - set(features))
    if not features:
        figure, axis = plt.subplots(figsize=(5, 1.2))
        axis.set_axis_off()
        axis.text(0, 0.5, "nothing could be steered: see the notes of the table")
        return figure
    columns = max(len(features), 2)
    texts = shown[shown.setting == "generated"]
    n_lines = len(texts.drop_duplicates(["target", "seed"]))
    heights = [3.0, 2.6, 2.9, 0.25 + 0.27 * n_lines]
    figure = plt.figure(figsize=(3.1 * columns, sum(heights) + 1.6), layout="constrained")
    pareto, doses, matrices, gallery = figure.subfigures(4, 1, height_ratios=heights)
    of_doses = shown[~shown.setting.isin(NOT_DOSES) & (shown.control == "none")]
    of_doses = of_doses.assign(dose=of_doses.setting.astype(float)).sort_values("dose")
    # Steering every generated token reaches every other answer; the answer's own token is where least is needed.
    there, own_token = (
        prefer if (of_doses.position == prefer).any() else of_doses.position.iloc[0]
        for prefer in ("generated", "answer")
    )
    axes = pareto.subplots(1, columns, squeeze=False, sharey=True)[0]
    below = doses.subplots(1, columns, squeeze=False, sharey=True)[0]
    for place, feature in enumerate(features):
        own = of_doses[of_doses.target == feature]
        _pareto(axes[place], own[own.position == there])
        _responses(below[place], own[own.position == own_token])
        axes[place].set_title(plots.label(feature, design.aliases), fontsize=9)
    for axis in (*axes[len(features) :], *below[len(features) :]):
        axis.set_axis_off()
    axes[0].set_ylabel("other answers that change")
    below[0].set_ylabel("answers that flip")
    pareto.suptitle(f"Off target against on target, {PLACES[there]} steered", fontsize=9, fontweight="bold")
    doses.suptitle(f"Dose response, {PLACES[own_token]} steered", fontsize=9, fontweight="bold")
    handles: dict[str, object] = {}
    for axis in below[: len(features)]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    doses.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    matrices.suptitle(f"Which answers change, {PLACES[there]} steered", fontsize=9, fontweight="bold")
    _matrices(matrices, shown[shown.position == there], features, design)
    _gallery(gallery, texts, design)
    return figure


def _style(direction: str) -> tuple[str, str, str]:
    return STYLES.get(direction, ("#BBBBBB", "", OTHERS))


def _pareto(axis: Axes, own: pd.DataFrame) -> None:
    """Off-target against on-target flips, one mark a dose."""
    # Where no other answer follows, held-out probes say what else changed, if any were trained.
    off = "off_target" if (own.score == "off_target").any() else "probe_off_target"
    scores = own[own.score.isin(["flip", off])].replace({"score": {off: "off_target"}})
    if off == "probe_off_target" and len(scores):
        axis.annotate("other features: held-out probes", (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=7)
    if not (scores.score == "off_target").any():
        words = {"ha": "center", "va": "center", "fontsize": 8, "color": plots.GREY}
        axis.text(0.5, 0.5, "no other answer\nfollows", transform=axis.transAxes, **words)
    wide = scores.pivot_table(index=["direction", "dose"], columns="score", values=["estimate", "lower", "upper"])
    for direction in sorted(wide.index.get_level_values(0).unique(), key=lambda name: name in STYLES):
        at = wide.loc[direction]
        if ("estimate", "off_target") not in at or ("estimate", "flip") not in at:
            continue
        colour, marker, _ = _style(direction)
        x, y = at["estimate", "flip"], at["estimate", "off_target"]
        axis.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.1)
        if direction in STYLES:
            style = {"color": colour, "alpha": 0.35, "linewidth": 0.7}
            axis.hlines(y, at["lower", "flip"], at["upper", "flip"], **style)
            axis.vlines(x, at["lower", "off_target"], at["upper", "off_target"], **style)
    axis.axhline(0.1, color=plots.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.axvline(0.95, color=plots.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(-0.02, 0.52)
    axis.set_xlabel("answers that flip", fontsize=8)
    sns.despine(ax=axis)


def _responses(axis: Axes, own: pd.DataFrame) -> None:
    """Flips by dose."""
    flips = own[own.score == "flip"]
    for direction in sorted(flips.direction.unique(), key=lambda name: name in STYLES):
        colour, marker, name = _style(direction)
        at = flips[flips.direction == direction]
        axis.plot(at.dose, at.estimate, color=colour, marker=marker, markersize=3.5, linewidth=1.1, label=name)
        if direction in STYLES:
            axis.fill_between(at.dose, at.lower, at.upper, color=colour, alpha=0.1, linewidth=0)
    axis.axhline(0.95, color=plots.GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("coefficient (1: class means exchanged)", fontsize=8)
    sns.despine(ax=axis)


def _matrices(figure, shown: pd.DataFrame, features: list[str], design: designs.Design) -> None:
    """Steered feature (rows) against read-out (columns), at the chosen setting."""
    chosen = shown[(shown.setting == "chosen") & (shown.control == "none")]
    directions = [name for name in MATRICES if (chosen.direction == name).any()] or sorted(chosen.direction.unique())[
        :4
    ]
    colours = LinearSegmentedColormap.from_list("flips", ["#FFFFFF", plots.BLUE])
    axes = figure.subplots(1, max(len(directions), 2), squeeze=False, sharey=True)[0]
    names = [design.aliases.get(name, name) for name in features]
    for axis, direction in zip(axes, directions, strict=False):
        values = np.full((len(features), len(features)), np.nan)
        for i, steered in enumerate(features):
            own = chosen[(chosen.target == steered) & (chosen.direction == direction)].set_index("score").estimate
            for j, read in enumerate(features):
                values[i, j] = own.get("flip" if i == j else f"flip_on_{read}", np.nan)
        axis.imshow(values, cmap=colours, vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else plots.BLACK)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(_style(direction)[2] if direction in STYLES else direction, fontsize=9)
        axis.grid(False)
    for axis in axes[len(directions) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("steered")
    figure.supxlabel("answer that changes (–: not reached)", fontsize=8)


def _gallery(figure, texts: pd.DataFrame, design: designs.Design) -> None:
    """Prompts with what is generated before and after."""
    axis = figure.subplots()
    axis.set_axis_off()
    lines = []
    for (target, _), both in texts.groupby(["target", "seed"]):
        notes = both.set_index("direction").note
        steered = next(name for name in notes.index if name != "none")
        prompt, _, before = notes["none"].partition(" | ")
        after = notes[steered].partition(" | ")[2]
        lines.append(textwrap.shorten(f"{design.aliases.get(target, target)}: {prompt} …", WIDTH_OF_TEXT))
        lines.append(f"    as it is: {before}    steered: {after}")
    axis.text(0, 1, "\n".join(lines), va="top", ha="left", fontsize=7, family="monospace", transform=axis.transAxes)
