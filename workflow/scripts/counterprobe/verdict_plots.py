"""The map of READ against USE: what was learned lies to the right, what is used lies high."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from counterprobe import plots, verdicts
from counterprobe.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

MODEL_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)
ROLE_MARKERS = {"needed XOR": "o", "pre-registered": "s", "needless XOR": "^", "basic feature": "D"}
# Names beside marks that nearly coincide are set one under another.
NEAR = (0.06, 0.05)


def draw(rows: pd.DataFrame, aliases: dict[str, str]) -> Figure:
    """One panel a read position; a mark a model, design and target, named where it is learned or used.

    Without any rows a figure that says so: no design has anything that could be held out.
    """
    plots.theme()
    positions = list(dict.fromkeys(rows.position)) or ["none"]
    figure, axes = plt.subplots(1, len(positions), figsize=(4.9 * len(positions), 4.2), sharex=True, sharey=True)
    models = list(dict.fromkeys(rows.model))
    colours = dict(zip(models, MODEL_COLOURS * (1 + len(models) // len(MODEL_COLOURS)), strict=False))
    for axis, position in zip(np.atleast_1d(axes), positions, strict=True):
        axis.axhline(0, color=GREY, linewidth=1)
        axis.axvline(0, color=GREY, linewidth=1)
        placed: list[tuple[float, float]] = []
        for row in rows[rows.position == position].itertuples():
            predicted = row.effect_of == "effect"
            height = row.effect if predicted else 0.0
            axis.plot(
                row.bits_above,
                height,
                ROLE_MARKERS[row.role],
                color=colours[row.model],
                markerfacecolor=colours[row.model] if predicted else "none",
                markersize=6,
                alpha=0.9,
            )
            if predicted:
                axis.plot([row.bits_above] * 2, [row.effect_lower, row.effect_upper], color=colours[row.model])
            if row.read == verdicts.LEARNED or row.use == verdicts.USED:
                under = sum(abs(row.bits_above - x) < NEAR[0] * 5 and abs(height - y) < NEAR[1] for x, y in placed)
                placed.append((row.bits_above, height))
                axis.annotate(
                    plots.label(row.target, aliases),
                    (row.bits_above, height),
                    xytext=(-7, 5 + 9 * under),
                    textcoords="offset points",
                    ha="right",
                    fontsize=7,
                    color=colours[row.model],
                )
        axis.set_title(f"read at: {position.replace('_', ' ')}")
        axis.set_xlabel("bits beyond the strongest rung")
        axis.margins(0.16, 0.14)
    if rows.empty:
        np.atleast_1d(axes)[0].set_title("nothing could be judged", fontsize=9)
    np.atleast_1d(axes)[0].set_ylabel("share of the gap that the swap closes")
    handles = [Line2D([], [], linestyle="", marker="o", color=colours[model], label=model) for model in models]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color=GREY, label=name) for name, marker in ROLE_MARKERS.items()
    ]
    handles.append(
        Line2D([], [], linestyle="", marker="o", color=GREY, markerfacecolor="none", label="no answer of its own")
    )
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, bbox_to_anchor=(0.5, -0.12))
    sns.despine(figure)
    figure.tight_layout()
    return figure
