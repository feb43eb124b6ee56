"""Figure of models trained around embeddings that never move: what is lost, what is answered, what is read."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import plots
from counterprobe.plots import BLACK, BLUE, VERMILION

CRITERION = 0.05  # of what training gains over token frequencies, that claim C38 asks for
NAMES = {
    "trainable": "trainable",
    "gaussian": "frozen Gaussian",
    "orthogonal": "frozen orthogonal",
    "permuted": "frozen, permuted\nfrom the trained",
    "one_row": "trained, then\none row random",
    "one_row_tuned": "the same, finetuned",
    "trainable_tuned": "trainable, finetuned",
}
TYINGS = {False: ("untied", BLUE, "o"), True: ("tied", VERMILION, "D")}


def draw(rows: pd.DataFrame) -> Figure:
    """Four panels: share of the loss, right answers, accuracy of probes on the needed and on the needless XOR."""
    plots.theme()
    kinds = [kind for kind in NAMES if (rows.embedding == kind).any()]
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 0.5 * len(kinds) + 1.6), sharey=True)
    _gaps(axes[0], rows[rows.score == "loss_gap_share"], kinds)
    accuracy = rows[rows.score == "accuracy"]
    answers, probed = accuracy[accuracy.probe == "answer"], accuracy[accuracy.probe == "logistic"]
    needed = answers.target.iloc[0]
    needless = [target for target in probed.target.unique() if target != needed]
    _seeds(axes[1], answers, kinds, f"model's own answer:\n{plots.label(needed, {needed: 'truth'})}")
    _seeds(axes[2], probed[probed.target == needed], kinds, "probe on it, at the token\nit answers from")
    _seeds(axes[3], probed[probed.target.isin(needless)], kinds, f"probe on a needless XOR:\n{_named(needless)}")
    axes[0].set_yticks(range(len(kinds)), [NAMES[kind] for kind in kinds])
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    axes[0].legend(fontsize=7, frameon=False)
    sns.despine(figure)
    figure.tight_layout()
    return figure


def _gaps(axis: Axes, gaps: pd.DataFrame, kinds: list[str]) -> None:
    for shift, (tied, (name, colour, marker)) in zip((-0.12, 0.12), TYINGS.items(), strict=True):
        shown = gaps[gaps.tied == tied].dropna(subset="estimate")
        y = shown.embedding.map(kinds.index).to_numpy(float) + shift
        arms = plots.whiskers(shown)
        axis.errorbar(shown.estimate, y, xerr=arms, fmt=marker, color=colour, markersize=4, capsize=2, label=name)
    axis.axvline(0, color=BLACK, linewidth=0.6)
    axis.axvline(CRITERION, color=BLACK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="loss lost, share of what\ntraining gains (over seeds)", title="frozen against trainable")


def _seeds(axis: Axes, shown: pd.DataFrame, kinds: list[str], title: str) -> None:
    """A mark a seed, a line at their mean."""
    for shift, (tied, (_, colour, marker)) in zip((-0.12, 0.12), TYINGS.items(), strict=True):
        of = shown[shown.tied == tied]
        y = of.embedding.map(kinds.index).to_numpy(float) + shift
        axis.plot(of.estimate, y, marker, color=colour, markersize=4, alpha=0.6, linestyle="")
        for kind, mean in of.groupby("embedding").estimate.mean().items():
            place = kinds.index(str(kind)) + shift
            axis.plot([mean, mean], [place - 0.1, place + 0.1], color=colour, linewidth=2)
    axis.axvline(plots.CHANCE, color=BLACK, linewidth=0.6)
    axis.set(xlabel="accuracy", xlim=(min(0.4, float(np.nanmin(shown.estimate)) - 0.03), 1.03))
    axis.set_title(title, fontsize=9)


def _named(targets: list[str]) -> str:
    return ", ".join(plots.label(target, {}) for target in targets)
