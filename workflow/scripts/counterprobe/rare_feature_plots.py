"""Figure of planted features: the share that each dictionary finds against the number of rows, by how rare they are."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import plots
from counterprobe.plots import BLUE, GREY, VERMILION

DICTIONARIES = {
    "sae": ("SAE, {} latents", BLUE, "o", "-"),
    "ica": ("ICA, {} components", VERMILION, "D", "-"),
    "random": ("{} random directions", GREY, "s", "--"),
}
RARITIES = {
    "quarter_1": "most frequent quarter",
    "quarter_2": "second quarter",
    "quarter_3": "third quarter",
    "quarter_4": "rarest quarter",
    "rare_half": "rarer half",
}
# Factors on the number of rows, so that intervals of equal recall do not hide each other.
SHIFTS = (0.85, 1.0, 1.18)


def draw(rows: pd.DataFrame) -> Figure:
    """A panel for each rarity; a line for each dictionary, with Student's interval over seeds."""
    plots.theme()
    shown = rows[(rows.score == "recall") & (rows.seed < 0)]
    figure, axes = plt.subplots(1, len(RARITIES), figsize=(12.5, 3.0), sharey=True, layout="constrained")
    for axis, (rarity, title) in zip(axes, RARITIES.items(), strict=True):
        _panel(axis, shown[shown.rarity == rarity], title)
    axes[0].set_ylabel("share of features found")
    # Student's intervals know nothing of 0 and 1, and none is cut off.
    axes[0].set_ylim(min(-0.04, shown.lower.min() - 0.02), max(1.04, shown.upper.max() + 0.02))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    sns.despine(figure)
    return figure


def _panel(axis: Axes, of: pd.DataFrame, title: str) -> None:
    for shift, (dictionary, (name, colour, marker, line)) in zip(SHIFTS, DICTIONARIES.items(), strict=True):
        own = of[of.dictionary == dictionary].sort_values("rows")
        if own.empty:
            continue
        axis.errorbar(
            shift * own.rows,
            own.estimate,
            yerr=plots.whiskers(own),
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=4,
            markerfacecolor="white" if dictionary == "random" else colour,
            capsize=2,
            label=name.format(own["size"].iloc[0]),
        )
    axis.set_xscale("log")
    axis.set(xlabel="rows")
    axis.set_title(f"{title}\n(on in {100 * of.rarely.min():.2g} to {100 * of.often.max():.2g}% of rows)", fontsize=9)
