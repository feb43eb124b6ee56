"""Figures of dictionaries: what they are worth beside random ones, and what the network minds.

Every mark of a trained model has its two baselines beside it: the random dictionary of the same sparsity and the same kind
of dictionary of randomised weights. Shown is one layer (the middle one of those there are), the largest size, the smallest
k, the first seed; and every dictionary that others trained. The table has the rest.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import designs, plots
from counterprobe.dictionary_table import BASES, PRETRAINED, RANDOM, SAE, TRAINED

NAMES = {
    "sae": "SAE",
    "frozen_decoder": "SAE, decoder frozen",
    "ica": "ICA",
    "pca": "PCA",
    "neurons": "neurons",
    RANDOM: "random",
}
WORTH = {
    "fvu": "unexplained variance",
    "loss_recovered": "loss recovered",
    "sparse_probe": "sparse probe",
    "token_entropy": "entropy of a latent's tokens (bits)",
    "single_token": "latents of a single token",
    "nearest_cosine": "nearest |cosine| in the decoder",
}
REPLACED = {
    "zero": "zero",
    "mean": "mean",
    "norm_corrected": "reconstruction, norm corrected",
    "reconstruction": "reconstruction",
    "fitted_scales": "… scales fitted",
    "places_restored": "… positions restored",
    "mixture": "random: mixture",
    "covariance": "random: covariance",
    "isotropic": "random: isotropic",
    "theta": "random: same angle",
    "norm_only": "norm only",
}
MOVED = {
    "diff_mean": ("difference of means", plots.BLUE, "o"),
    "probe": ("probe (LDA)", plots.SKY, "s"),
    "difference": ("another text", plots.GREEN, "^"),
    "covariance": ("covariance", plots.ORANGE, "D"),
    "decoder": ("dictionary rows", plots.VERMILION, "v"),
    "isotropic": ("isotropic", plots.BLACK, "x"),
}
# A range from which an axis is logarithmic.
DECADE = 10
# Above the highest curve, as a factor: half of the panel for six kinds of moves.
LEGEND_ROOM = 100.0
# Where the two baselines are drawn; colours of their own, since they are in every panel.
BASELINES = {
    "random_dictionary": ("random dictionary", plots.ORANGE, "|"),
    "random_model": ("randomised weights", plots.GREY, "D"),
}


def shown(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """The rows of one cell of the sweep: trained weights at the last revision, and see the module."""
    rows = table[(table.model == model) & (table.design == design.name) & (table.weights == TRAINED)]
    rows = rows[(rows.step == rows.step.max()) & (rows.seed == 0)]
    layers = sorted(rows.layer.unique())
    rows = rows[rows.layer == layers[len(layers) // 2]]
    others = rows.dictionary.str.startswith(PRETRAINED)
    ours = rows[~others]
    learned = rows[rows.dictionary == SAE]
    chosen = (ours.k == learned.k.min()) & (ours.dictionary.isin(BASES) | (ours["size"] == learned["size"].max()))
    return pd.concat([ours[chosen], rows[others]])


def worth(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """Scores of every kind of dictionary, of the texts and of random tokens."""
    rows = shown(table, model, design)
    probes = rows[rows.score == "sparse_probe"]
    most = probes[probes["at"] == probes["at"].max()]
    xor = designs.canonical(design, "^".join(design.primary))
    plain = rows[rows.score.isin(set(WORTH) - {"sparse_probe"})]
    return pd.concat([plain, most[most.target.isin([*design.primary, xor])]], ignore_index=True)


def draw_worth(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """One panel a score, one line a dictionary; random tokens are open marks; one panel for each probed target."""
    plots.theme()
    kinds = [kind for kind in NAMES if kind != RANDOM and (rows.dictionary == kind).any()]
    kinds += sorted(set(rows.dictionary) - set(NAMES))
    targets = [target for target in designs.targets(design) if (rows.target == target).any()]
    wanted = [(score, "none") for score in WORTH if score != "sparse_probe" and (rows.score == score).any()]
    wanted[2:2] = [("sparse_probe", target) for target in targets]
    figure, axes = plots.panels(len(wanted), height=0.32 * len(kinds) + 1.0)
    for axis, (score, target) in zip(axes, wanted, strict=False):
        here = rows[(rows.score == score) & ((rows.target == target) | (target == "none"))]
        for inputs, filled in (("design", True), ("random_tokens", False)):
            of = here[here.inputs == inputs].set_index("dictionary").reindex(kinds)
            if filled:
                baselines(axis, of)
            whiskers = np.nan_to_num(plots.whiskers(of))
            axis.errorbar(
                of.estimate,
                range(len(kinds)),
                xerr=whiskers,
                fmt="o",
                markersize=5,
                color=plots.BLUE,
                markerfacecolor=plots.BLUE if filled else "white",
                linewidth=1,
                label="the texts" if filled else "random tokens",
                zorder=3,
            )
        if score == "sparse_probe":
            axis.axvline(plots.CHANCE, color=plots.BLACK, linewidth=0.6)
        title = f"{WORTH[score]}: {plots.label(target, design.aliases)}" if target != "none" else WORTH[score]
        axis.set_title(title, fontsize=8)
    axes[0].set_yticks(range(len(kinds)), [NAMES.get(kind, kind.removeprefix(PRETRAINED)) for kind in kinds])
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    legend(figure, axes, len(wanted))
    return figure


def baselines(axis: Axes, of: pd.DataFrame) -> None:
    """Both, one mark a line each."""
    for column, (name, colour, marker) in BASELINES.items():
        size, edge = (12, 2) if marker == "|" else (4, 1)
        axis.plot(
            of[column],
            range(len(of)),
            linestyle="none",
            marker=marker,
            markersize=size,
            markeredgewidth=edge,
            color=colour,
            label=name,
        )


def disturbed(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """What the network says with an SAE's reconstructions, their controls, and moves at one token."""
    rows = shown(table, model, design)
    scores = ("kl", "kl_ratio", "response", "magnitude_ratio", "above_random", "jitter_ratio")
    return rows[(rows.dictionary == "sae") & (rows.inputs == "design") & rows.score.isin(scores)]


def draw_disturbed(rows: pd.DataFrame) -> Figure:
    """KL of replacements; response against distance; how much farther isotropic directions go; the share that stands out."""
    plots.theme()
    figure, axes = plots.panels(4, sharey=False, height=3.2)
    figure.set_size_inches(13.5, 3.2)
    replaced = rows[rows.score == "kl"].set_index("kind").reindex([kind for kind in REPLACED if kind in set(rows.kind)])
    lines(axes[0], replaced, [REPLACED[kind] for kind in replaced.index])
    axes[0].set_xscale("log")
    axes[0].set_title("KL, all tokens replaced (nats)", fontsize=9)
    kinds = [kind for kind in MOVED if ((rows.score == "response") & (rows.kind == kind)).any()]
    for kind in kinds:
        name, colour, marker = MOVED[kind]
        curve = rows[(rows.score == "response") & (rows.kind == kind)].sort_values("at")
        axes[1].plot(curve["at"], curve.estimate, color=colour, marker=marker, markersize=4, label=name)
        axes[1].fill_between(curve["at"], curve.lower, curve.upper, color=colour, alpha=0.12, linewidth=0)
    axes[1].set_xscale("log")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("distance (RMS distance from the mean)")
    axes[1].set_title("KL, one token moved (nats)", fontsize=9)
    # Curves rise from the lower left to the upper right: the legend stands in decades added above them.
    axes[1].set_ylim(top=LEGEND_ROOM * axes[1].get_ylim()[1])
    axes[1].legend(fontsize=7, frameon=False, loc="upper left")
    for axis, score, title in (
        (axes[2], "magnitude_ratio", "isotropic distance / distance\nfor the same response"),
        (axes[3], "above_random", "share above the 99th percentile\nof isotropic directions"),
    ):
        of = rows[rows.score == score].set_index("kind").reindex(kinds)
        lines(axis, of, [MOVED[kind][0] for kind in kinds])
        level = of.level.dropna()
        if len(level):
            axis.axvline(level.iloc[0], color=plots.BLACK, linewidth=0.6)
        axis.set_title(title, fontsize=9)
    ratios = rows[rows.score == "magnitude_ratio"].estimate
    if len(ratios) and ratios.max() > DECADE * ratios.min():
        axes[2].set_xscale("log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, -0.08))
    sns.despine(figure)
    figure.tight_layout()
    return figure


def lines(axis: Axes, of: pd.DataFrame, names: list[str]) -> None:
    """One line a kind: the SAE's number with its interval, and both baselines."""
    baselines(axis, of)
    axis.errorbar(
        of.estimate,
        range(len(of)),
        xerr=np.nan_to_num(plots.whiskers(of)),
        fmt="o",
        markersize=5,
        color=plots.BLUE,
        linewidth=1,
        label="SAE of the trained model",
        zorder=3,
    )
    axis.set_yticks(range(len(of)), names)
    axis.set_ylim(len(of) - 0.5, -0.5)


def legend(figure: Figure, axes: list[Axes], used: int) -> None:
    """One for all panels, below them."""
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    for axis in axes[used:]:
        axis.set_axis_off()
    sns.despine(figure)
    figure.tight_layout()
    figure.legend(
        handles.values(), handles.keys(), loc="upper center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 0.0)
    )
