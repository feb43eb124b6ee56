"""Figures of the embedding matrix, of single neurons and of single layers."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from counterprobe import designs, plots
from counterprobe.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

CRITERION = 0.9  # held-out AUROC that claim C52 asks for
MATRICES = {
    "trained": ("trained", BLACK, "*"),
    "step0": ("step 0", GREY, "s"),
    "init": ("initialisation", SKY, "v"),
    "matched_gaussian": ("matched Gaussian", ORANGE, "D"),
    "shuffled_columns": ("shuffled columns", PURPLE, "^"),
}
ATOMS_LISTED = 32  # in a column beside the map
PLACES = ("pc1", "pc2")  # coordinates of the map of atoms
RANDOM_LABELS = ("random labels, trained", VERMILION, "x")
RANKINGS = {
    "best": ("best (search)", BLACK, "*"),
    "mean_difference": ("mean difference", BLUE, "o"),
    "f_statistic": ("F statistic", SKY, "s"),
    "mutual_information": ("mutual information", GREEN, "D"),
    "l1": ("L1", ORANGE, "^"),
    "random": ("random", GREY, "x"),
}
SHARES = {
    "mass_of_top_5": "of absolute\ncontributions",
    "share_of_top_5": "of the effect,\nattributed",
    "patched_share_of_top_5": "of the effect,\npath-patched",
}
LENSES = {"logit_lens": ("logit lens", BLUE, "o"), "tuned_lens": ("tuned lens", VERMILION, "D")}
KL_FLOOR = 1e-3  # bits, of the logarithmic axis: the last layer has none


def embedding_rows(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """AUROC of every property, FVU and circularity of every sparse code, and the map of atoms, of one model's embedding;
    random labels at the last revision."""
    rows = table[(table.model == model) & table.score.isin(["auroc", "fvu", "circularity", *PLACES])]
    last = plots.ordered_revisions(rows)[-1:]
    return rows[(rows.control == "none") | ((rows.weights == "trained") & rows.revision.isin(last))]


def draw_embedding(rows: pd.DataFrame) -> Figure:
    """Every property over training; at the last revision beside its controls; error of sparse codes beside theirs."""
    plots.theme()
    revisions = plots.ordered_revisions(rows[rows.weights == "trained"])
    codes, atoms = rows[(rows.score == "fvu") & (rows.probe != "bound")], rows[rows.score.isin(PLACES)]
    circular, rows = rows[rows.score == "circularity"], rows[rows.score == "auroc"]
    held_out = rows[rows.control == "none"]
    last = held_out[(held_out.weights == "trained") & (held_out.revision == revisions[-1])]
    names = last.sort_values("estimate").target.tolist()
    figure, axes = plt.subplots(1, 4, figsize=(18.6, 0.26 * len(names) + 2.6), width_ratios=(1, 1, 0.85, 1.3))
    colours = sns.color_palette("tab10" if len(names) <= 10 else "husl", len(names))
    for place, name in enumerate(names):
        line = (
            held_out[(held_out.weights == "trained") & (held_out.target == name)]
            .set_index("revision")
            .reindex(revisions)
        )
        colour = colours[place]
        axes[0].plot(
            range(len(revisions)),
            line.estimate,
            color=colour,
            marker=".",
        )
        axes[0].fill_between(range(len(revisions)), line.lower, line.upper, color=colour, alpha=0.08, linewidth=0)
    plots.sparse_ticks(axes[0], [revision.removeprefix("step") for revision in revisions])
    axes[0].set_xlabel("training step" if len(revisions) > 1 else "revision")
    axes[0].set_ylabel("held-out AUROC over tokens")
    axes[0].set_title("colours: names on the right", fontsize=8)
    for weights, (text, colour, marker) in MATRICES.items():
        if weights == "step0":
            shown = held_out[(held_out.weights == "trained") & (held_out.revision == "step0")]
            shown = shown if revisions[-1] != "step0" else shown[:0]
        else:
            shown = held_out[(held_out.weights == weights) & (held_out.revision == revisions[-1])]
        _marks(axes[1], shown, names, text, colour, marker, interval=weights == "trained")
    _marks(axes[1], rows[rows.control == "shuffled"], names, *RANDOM_LABELS, interval=False)
    axes[1].set_yticks(range(len(names)), [_words(name) for name in names])
    for text, colour in zip(axes[1].get_yticklabels(), colours, strict=True):
        text.set(color=colour, fontweight="bold")
    axes[1].set_xlabel(f"held-out AUROC at {revisions[-1]}")
    axes[1].legend(fontsize=7, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    _code_panel(axes[2], codes, revisions)
    _atom_panel(axes[3], atoms, circular[circular.revision == revisions[-1]])
    for line in (axes[0].axhline, axes[1].axvline):
        line(plots.CHANCE, color=BLACK, linewidth=0.6)
        line(CRITERION, color=BLACK, linewidth=0.8, linestyle=":")
    sns.despine(figure)
    figure.tight_layout()
    return figure


def _code_panel(axis: Axes, codes: pd.DataFrame, revisions: list[str]) -> None:
    """Error of the largest dictionary by k: first and last revision, and matrices that nobody trained."""
    told = codes.probe.str.extract(r"^atoms_(?P<m>\d+)_k_(?P<k>\d+)$").astype(float)
    codes = codes.assign(m=told.m, k=told.k)
    codes = codes[codes.m == codes.m.max()]
    ks = sorted(codes.k.unique())
    for weights, (text, colour, marker) in MATRICES.items():
        step0 = weights == "step0"
        revision = revisions[0] if step0 else revisions[-1]
        if step0 and revisions[0] == revisions[-1]:
            continue
        shown = codes[(codes.weights == ("trained" if step0 else weights)) & (codes.revision == revision)]
        mean = shown.groupby("k").estimate.mean().reindex(ks)
        name = revision.replace("step", "step ") if step0 else text
        axis.plot(range(len(ks)), mean, color=colour, marker=marker, markersize=5, linewidth=1.1, label=name)
    axis.set_xticks(range(len(ks)), [f"{k:.0f}" for k in ks])
    axis.set(xlabel="atoms of a row, k", ylabel="variance not explained (FVU)")
    axis.set_ylim(bottom=0)
    axis.set_title(
        f"sparse codes, {codes.m.max():.0f} atoms" if len(codes) else "too few tokens for a code", fontsize=9
    )
    axis.legend(fontsize=7, frameon=False)


def _atom_panel(axis: Axes, atoms: pd.DataFrame, circular: pd.DataFrame) -> None:
    """Numbered atoms on their first two principal components, their tokens beside them; how circular a group of them is,
    and is by chance."""
    if not len(atoms):
        axis.set_title("too few tokens for a map of atoms", fontsize=9)
        axis.axis("off")
        return
    told = atoms.pivot(index=["probe", "note", "n_texts", "target"], columns="score", values="estimate").reset_index()
    # From the top down, as they lie on the map.
    told = told.sort_values("pc2", ascending=False, ignore_index=True)
    axis.scatter(told.pc1, told.pc2, s=6 + 1.5 * told.n_texts, color=BLUE, alpha=0.35, linewidth=0)
    for atom in told.itertuples():
        axis.text(atom.pc1, atom.pc2, str(atom.Index + 1), fontsize=6, ha="center", va="center")
    for column in range(math.ceil(len(told) / ATOMS_LISTED)):
        part = told[column * ATOMS_LISTED : (column + 1) * ATOMS_LISTED]
        words = "\n".join(f"{atom.Index + 1}  {atom.note}" for atom in part.itertuples())
        axis.text(1.03 + 0.58 * column, 1.0, words, transform=axis.transAxes, fontsize=5.5, va="top", linespacing=1.25)
    code = told.target.iloc[0]
    *_, m, _, k = code.split("_")
    of_code = circular[circular.probe == code]
    found = of_code[of_code.weights == "trained"].estimate
    chance = of_code[of_code.weights == "matched_gaussian"].estimate
    said = f"{m} atoms at k = {k}, and tokens that use them most"
    if len(found) and len(chance):
        said += f"\nmost circular group {found.iloc[0]:.2f}, of matched Gaussians {chance.max():.2f}"
    axis.set(xlabel="first principal component", ylabel="second")
    axis.set_title(said, fontsize=9)


def neuron_rows(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """Sparse probes, dense ones, and shares of the top five components, of one model and design."""
    rows = table[(table.model == model) & (table.design == design.name)]
    sparse = (rows.representation == "neurons") & rows.score.isin(["accuracy", "balanced_accuracy"])
    return rows[sparse | rows.score.isin(SHARES)]


def draw_neurons(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """A panel a feature, accuracy against k at its best MLP; then shares of five components, token-neurons and random."""
    plots.theme()
    probes = rows[rows.representation == "neurons"].copy()
    told = probes.probe.str.extract(r"^(?P<ranking>.+)_(?P<k>\d+)$")
    probes = probes.assign(ranking=told.ranking, k=told.k.astype(float))
    targets = [target for target in designs.targets(design) if (probes.target == target).any()]
    figure, axes = plots.panels(len(targets) + 2, sharey=False, height=2.7)
    for axis, target in zip(axes, targets, strict=False):
        _sparse_panel(axis, probes[probes.target == target], plots.label(target, design.aliases))
    _shares_panel(axes[len(targets)], rows[rows.score.isin(SHARES)])
    for axis in axes[len(targets) + 1 :]:
        axis.axis("off")
    if targets:
        axes[0].set_ylabel("held-out accuracy")
        handles, names = axes[0].get_legend_handles_labels()
        axes[len(targets) + 1].legend(handles, names, loc="center", frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _sparse_panel(axis: Axes, of_target: pd.DataFrame, title: str) -> None:
    """Every ranking at the MLP where the largest k of the mean difference tells most."""
    trained = of_target[(of_target.weights == "trained") & (of_target.control == "none")]
    sparse = trained[trained.ranking.isin(RANKINGS)]
    layer = int(sparse.loc[sparse[sparse.k == sparse.k.max()].estimate.idxmax()].layer)
    here = of_target[of_target.layer == layer]
    ks = sorted(sparse.k.unique())
    places = {k: place for place, k in enumerate(ks)}
    plain = here[here.control == "none"]
    for ranking, (name, colour, marker) in RANKINGS.items():
        line = plain[(plain.weights == "trained") & (plain.ranking == ranking)].sort_values("k")
        if len(line):
            x = line.k.map(places)
            axis.plot(x, line.estimate, color=colour, marker=marker, markersize=4, linewidth=1.1, label=name)
            if ranking == "best":
                axis.fill_between(x, line.lower, line.upper, color=colour, alpha=0.1, linewidth=0)
    rungs = plain[(plain.weights != "trained") & (plain.ranking == "best")]
    for weights in rungs.weights.unique():
        line = rungs[rungs.weights == weights].groupby("k").estimate.mean()
        name = f"best, {plots.RUNG_NAMES[weights]}"
        axis.plot([places[k] for k in line.index], line, color=BLACK, linestyle="--", linewidth=1, label=name)
    drawn = here[(here.control == "dichotomy") & (here.ranking == "mean_difference")].sort_values("k")
    axis.plot(drawn.k.map(places), drawn.estimate, color=VERMILION, linestyle=":", label="random labellings")
    dense = plain[(plain.weights == "trained") & (plain.ranking == "dense")]
    for row in dense.itertuples():
        axis.axhline(row.estimate, color=GREEN, linewidth=0.9, label=f"all {row.k:.0f} neurons")
    axis.axhline(plots.CHANCE, color=BLACK, linewidth=0.6)
    axis.set_xticks(range(len(ks)), [f"{k:.0f}" for k in ks])
    axis.set_ylim(min(0.4, float(plain.estimate.min()) - 0.03), 1.03)
    axis.set_xlabel("neurons k")
    axis.set_title(f"{title}, MLP {layer - 1}", fontsize=9)


def _shares_panel(axis: Axes, rows: pd.DataFrame) -> None:
    """A mark a neuron; the mean over neurons with its interval beside them."""
    single = rows[rows.probe != "token_neurons"]
    spread = np.random.default_rng(0)
    for place, score in enumerate(SHARES):
        for shift, (control, colour) in zip((-0.17, 0.17), (("none", BLUE), ("random_neurons", GREY)), strict=True):
            each = single[(single.score == score) & (single.control == control)].dropna(subset="estimate")
            x = place + shift + spread.uniform(-0.07, 0.07, len(each))
            name = "token-neurons" if control == "none" else "random neurons"
            axis.plot(x, each.estimate, "o", color=colour, markersize=3, alpha=0.6, label=name if place == 0 else None)
            if len(each):
                axis.plot(
                    [place + shift - 0.12, place + shift + 0.12], [each.estimate.median()] * 2, color=colour, lw=2
                )
    axis.axhline(0.5, color=BLACK, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(SHARES)), list(SHARES.values()), fontsize=7)
    axis.set_title("effect carried by 5 components", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def layer_rows(table: pd.DataFrame, model: str, design: designs.Design) -> pd.DataFrame:
    """Lenses, rotation, and answers of one model and design."""
    rows = table[(table.model == model) & (table.design == design.name) & (table.representation == "activations")]
    answers = (rows.score == "accuracy") & rows.probe.isin(["logistic", "answer"])
    return rows[answers | rows.score.isin(["kl", "share_of_drop", "reliability", "cosine_next", "probe_minus_answer"])]


def draw_layers(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """Four panels: divergence by layer, share of the drop, cosine between layers, probe against answer."""
    plots.theme()
    figure, grid = plt.subplots(2, 2, figsize=(9.2, 6.4))
    _lens_panels(grid[0], rows)
    _rotation_panel(grid[1, 0], rows[rows.score.isin(["cosine_next", "reliability"])], design)
    _answer_panel(grid[1, 1], rows[rows.score == "accuracy"], design)
    for axis in grid.flat[:3]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    sns.despine(figure)
    figure.tight_layout()
    return figure


def _lens_panels(axes: np.ndarray, rows: pd.DataFrame) -> None:
    for shift, (lens, (name, colour, marker)) in zip((-0.18, 0.18), LENSES.items(), strict=True):
        kl = rows[(rows.score == "kl") & (rows.probe == lens)].sort_values("layer")
        shown = kl[["estimate", "lower", "upper"]].clip(lower=KL_FLOOR)
        axes[0].plot(kl.layer, shown.estimate, color=colour, marker=marker, markersize=4, label=name)
        axes[0].fill_between(kl.layer, shown.lower, shown.upper, color=colour, alpha=0.15, linewidth=0)
        share = rows[(rows.score == "share_of_drop") & (rows.probe == lens)].sort_values("layer")
        arms = plots.whiskers(share)
        axes[1].bar(share.layer + shift, share.estimate, 0.36, yerr=arms, color=colour, alpha=0.8, label=name)
    for level in rows[rows.score == "kl"].level.unique()[:1]:
        axes[0].axhline(level, color=GREY, linestyle="--", linewidth=1, label="knowing nothing of the text")
    axes[0].set(yscale="log", xlabel="layer (0: embedding)", ylabel="KL from the final prediction (bits)")
    axes[0].set_title("what is still to be predicted")
    axes[1].axhline(0.4, color=BLACK, linestyle=":", linewidth=0.9)
    axes[1].axhline(0, color=BLACK, linewidth=0.6)
    axes[1].set(title="share of each layer in the drop", xlabel="layer")
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)


def _rotation_panel(axis: Axes, turning: pd.DataFrame, design: designs.Design) -> None:
    targets = [target for target in designs.targets(design) if (turning.target == target).any()]
    for (colour, marker), target in zip(plots.PARITY_STYLES, targets, strict=False):
        for score, style in (("cosine_next", "-"), ("reliability", ":")):
            line = turning[(turning.target == target) & (turning.score == score)].sort_values("layer")
            between = score == "cosine_next"
            axis.plot(
                line.layer + (0.5 if between else 0),
                line.estimate,
                style,
                color=colour,
                marker=marker if between else None,
                markersize=4,
                linewidth=1.1,
                label=plots.label(target, design.aliases) if between else None,
            )
    axis.axhline(0, color=BLACK, linewidth=0.6)
    axis.set(ylim=(-0.3, 1.05), xlabel="layer", title="cosine with the next layer's direction (dotted: with itself)")
    axis.title.set_fontsize(9)
    if targets:
        axis.legend(fontsize=6.5, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _answer_panel(axis: Axes, asked: pd.DataFrame, design: designs.Design) -> None:
    names = [target for target in designs.targets(design) if (asked.target == target).any()]
    for shift, (probe, colour, text) in zip(
        (-0.12, 0.12), (("logistic", BLUE, "probe"), ("answer", BLACK, "the model's answer")), strict=True
    ):
        at = asked[asked.probe == probe].set_index("target").reindex(names)
        y = np.arange(len(names)) + shift
        arms = plots.whiskers(at)
        axis.errorbar(at.estimate, y, xerr=arms, fmt="o", color=colour, markersize=4, capsize=2, label=text)
    wrapped = [plots.label(name, design.aliases).replace(" = ", " =\n") for name in names]
    axis.set_yticks(range(len(names)), wrapped, fontsize=8)
    axis.axvline(plots.CHANCE, color=BLACK, linewidth=0.6)
    axis.set(title="probe against the model's own answer", xlabel="accuracy", xlim=(0.3, 1.03))
    if names:
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    else:
        axis.set_title("no feature can be asked for", fontsize=9)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _marks(
    axis: Axes, shown: pd.DataFrame, names: list[str], text: str, colour: str, marker: str, *, interval: bool
) -> None:
    shown = shown[shown.target.isin(names)]
    if not len(shown):
        return
    y = shown.target.map({name: place for place, name in enumerate(names)})
    axis.plot(shown.estimate, y, marker, color=colour, markersize=8 if marker == "*" else 4, label=text, linestyle="")
    if interval:
        axis.hlines(y, shown.lower, shown.upper, color=colour, linewidth=1)
