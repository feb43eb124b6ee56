"""Figures drawn from result tables and from nothing else.

Each figure has two functions: one selects its rows (they are written beside the figure as CSV), one draws them.
Levels are drawn wherever an accuracy is: 0.5 is what a convex-loss probe reaches on an additive representation,
0.75 the most that any threshold on it can reach for an XOR (the OR of the two features). Colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), told apart by markers as well.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterprobe import designs, statistics

CHANCE, OR_CAP = 0.5, 0.75
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#7F7F7F",
)
PROTOCOL_STYLES = {
    "published": (VERMILION, "s", "published: rows at random"),
    "items": (ORANGE, "^", "items held out"),
    "carriers": (BLUE, "o", "items and names held out"),
}
RUNG_NAMES = {
    "trained": "trained",
    "step0": "step 0",
    "init": "initialisation",
    "gaussian": "Gaussian",
    "permuted_entries": "permuted entries",
    "spectrum": "spectrum",
    "spectrum_left": "spectrum, left kept",
    "spectrum_right": "spectrum, right kept",
    "permuted_columns": "permuted columns",
}
EMBEDDING_STYLES = {"kept": (BLUE, "o"), "randomised": (ORANGE, "D")}
# Colour and marker of up to seven parities; a dashed line is an XOR.
PARITY_STYLES = (
    (BLUE, "o"),
    (GREEN, "s"),
    (ORANGE, "^"),
    (VERMILION, "D"),
    (SKY, "v"),
    (PURPLE, "P"),
    (BLACK, "X"),
)
# Score: title of its panel, and the levels drawn in it.
GEOMETRY_PANELS = {
    "salience": ("salience: share of within-item variance", ()),
    "gain_share": ("δ: gain modulation (1) or own direction (0)", (0.0, 1.0)),
    "ccgp": ("cross-condition generalisation (accuracy)", (0.5,)),
    "parallelism": ("parallelism score", (0.0, 1.0)),
}
SALIENCE_FLOOR = 1e-5
PANELS_PER_ROW = 4
PLANTED = "planted-additive"


def theme() -> None:
    """One look for every figure; vector text stays text, so that a PDF can be searched and edited."""
    sns.set_theme(
        context="paper", style="ticks", rc={"axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.6}
    )
    matplotlib.rcParams.update({"pdf.fonttype": 42, "savefig.bbox": "tight", "figure.dpi": 110, "axes.titlesize": 10})


def save(figure: Figure, data: pd.DataFrame, outputs: Mapping[str, str]) -> None:
    """Write the figure and the rows behind it. No dates inside, so that equal figures are equal files."""
    figure.savefig(outputs["pdf"], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    figure.savefig(outputs["png"], dpi=160, metadata={"Software": None})
    data.to_csv(outputs["csv"], index=False, float_format="%.6g", lineterminator="\n")


def label(target: str, aliases: Mapping[str, str]) -> str:
    """`negated^match` as a reader says it: truth = negated ⊕ match."""
    formula = target.replace("^", " ⊕ ")
    return f"{aliases[target]} = {formula}" if target in aliases else formula


def shown_targets(design: designs.Design) -> tuple[str, ...]:
    """The parities of the first three factors: seven for a factorial design, three where there are two factors."""
    shown = set(list(design.factors)[:3])
    return tuple(target for target in designs.targets(design) if set(target.split("^")) <= shown)


def select_accuracy(
    probes: pd.DataFrame, model: str, design: designs.Design, protocols: Sequence[str], *, bos: bool
) -> pd.DataFrame:
    """Accuracy of the reference probe on the shown targets of one model and design, without label controls.

    Balanced accuracy where a feature is rare. Layer -1 stands for the layer that each fold chose on its own inner folds.
    """
    return probes[
        (probes.score == ("balanced_accuracy" if design.priors else "accuracy"))
        & (probes.probe == "logistic")
        & (probes.control == "none")
        & (probes.representation == "activations")
        & (probes.model == model)
        & (probes.design == design.name)
        & (probes.bos == bos)
        & probes.protocol.isin(protocols)
        & probes.target.isin(shown_targets(design))
    ]


def layers_by_step(
    probes: pd.DataFrame, model: str, design: designs.Design, *, protocol: str, position: str, bos: bool
) -> pd.DataFrame:
    """Held-out accuracy of every shown parity at every layer and revision of a trained model."""
    rows = select_accuracy(probes, model, design, [protocol], bos=bos)
    return rows[(rows.weights == "trained") & (rows.position == position) & (rows.layer >= 0)]


def draw_layers_by_step(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """One panel a parity: a line a layer over training, or one line over layers where there is a single revision."""
    theme()
    targets = [target for target in shown_targets(design) if (rows.target == target).any()]
    steps = ordered_revisions(rows)
    layers = sorted(rows.layer.unique().tolist())
    across, along, places = ("revision", "layer", layers) if len(steps) == 1 else ("layer", "revision", steps)
    lines = steps if across == "revision" else layers
    figure, axes = panels(len(targets) + 1, sharex=True)
    colours = sns.color_palette("viridis_r", len(lines) + 1)[1:]
    for axis, target in zip(axes, targets, strict=False):
        for colour, name in zip(colours, lines, strict=True):
            line = rows[(rows.target == target) & (rows[across] == name)].set_index(along).reindex(places)
            text = name if across == "revision" else layer_name(name)
            axis.plot(range(len(places)), line.estimate, color=colour, marker=".", label=text)
            axis.fill_between(range(len(places)), line.lower, line.upper, color=colour, alpha=0.12, linewidth=0)
        accuracy_axis(axis, label(target, design.aliases), xor="^" in target)
        sparse_ticks(axis, [str(place).removeprefix("step") for place in places])
    finish(
        figure,
        axes,
        used=len(targets),
        x="training step" if across == "layer" else "layer (0: embedding)",
        y="held-out accuracy",
        legend_title="residual stream" if across == "layer" else "revision",
    )
    return figure


def ladder(
    probes: pd.DataFrame,
    health: pd.DataFrame,
    model: str,
    design: designs.Design,
    *,
    protocol: str,
    position: str,
    bos: bool,
) -> pd.DataFrame:
    """Accuracy under trained and randomised weights at the last revision that has a ladder; every fold chose its layer.

    The rung `step0` is the trained model's own first revision. Column `collapsed` is the share of a rung's layers whose
    activations are dead; where it is above one half the rung is no control.
    """
    rows = select_accuracy(probes, model, design, [protocol], bos=bos)
    rows = rows[(rows.position == position) & (rows.layer == -1)]
    last = ordered_revisions(rows[rows.weights != "trained"])[-1]
    step0 = rows[(rows.weights == "trained") & (rows.step == 0) & (rows.revision != last)].assign(weights="step0")
    dead = health[(health.score == "collapsed") & (health.model == model) & (health.revision == last)]
    unit = ["weights", "embeddings", "seed"]
    dead = dead[dead.design == design.name].groupby(unit).estimate.mean().rename("collapsed").reset_index()
    shown = pd.concat([rows[rows.revision == last], step0], ignore_index=True)
    return shown.merge(dead, on=unit, how="left").fillna({"collapsed": 0.0})


def draw_ladder(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """One panel a parity: trained weights with their interval above every rung, a mark for each seed of a rung."""
    theme()
    targets = [target for target in shown_targets(design) if (rows.target == target).any()]
    rungs = [rung for rung in RUNG_NAMES if (rows.weights == rung).any()]
    figure, axes = panels(len(targets) + 1, sharey=True, height=0.26 * len(rungs) + 1.1)
    for axis, target in zip(axes, targets, strict=False):
        of_target = rows[rows.target == target]
        trained = of_target[of_target.weights == "trained"]
        for _, row in trained.iterrows():
            axis.axvspan(row.lower, row.upper, color=BLACK, alpha=0.08, linewidth=0)
            axis.errorbar(
                row.estimate,
                0,
                xerr=whiskers(row)[:, None],
                fmt="*",
                markersize=9,
                color=BLACK,
                capsize=2,
                label="trained, 95% interval",
            )
        for height, rung in enumerate(rungs[1:], start=1):
            for offset, (kind, (colour, marker)) in zip((-0.16, 0.16), EMBEDDING_STYLES.items(), strict=True):
                seeds = of_target[(of_target.weights == rung) & (of_target.embeddings == kind)]
                alive = seeds[seeds.collapsed <= 0.5]
                style = {"linestyle": "none", "markersize": 4, "markerfacecolor": "none"}
                if rung == "step0":
                    axis.plot(seeds.estimate, np.full(len(seeds), height), marker="*", color=BLACK, **style)
                    continue
                axis.plot(
                    alive.estimate,
                    np.full(len(alive), height + offset),
                    marker=marker,
                    color=colour,
                    label=f"embeddings {kind}, one mark a seed",
                    **style,
                )
                dead = seeds[seeds.collapsed > 0.5]
                if len(dead):
                    style_dead = {**style, "marker": "x", "color": GREY, "label": "collapsed: not a control"}
                    axis.plot(dead.estimate, np.full(len(dead), height + offset), **style_dead)
                if len(alive) > 1:
                    axis.plot(
                        [statistics.prediction_bound(alive.estimate.to_numpy())],
                        [height + offset],
                        marker="|",
                        color=colour,
                        label=f"embeddings {kind}, 95% bound for one more seed",
                        **{**style, "markersize": 8},
                    )
        axis.set_yticks(range(len(rungs)), [RUNG_NAMES[rung] for rung in rungs])
        axis.set_ylim(len(rungs) - 0.5, -0.6)
        accuracy_axis(axis, label(target, design.aliases), xor="^" in target, horizontal=True)
    finish(figure, axes, used=len(targets), x="held-out accuracy")
    return figure


def leak(probes: pd.DataFrame, model: str, design: designs.Design, *, position: str, bos: bool) -> pd.DataFrame:
    """The published layout under every protocol: a planted additive representation, random and trained weights."""
    planted = select_accuracy(probes, PLANTED, design, list(PROTOCOL_STYLES), bos=False)
    read = select_accuracy(probes, model, design, list(PROTOCOL_STYLES), bos=bos)
    read = read[(read.position == position) & (read.embeddings == "kept")]
    read = read[(read.revision == ordered_revisions(read)[-1]) & (read.layer == read.layer.max())]
    return pd.concat([planted, read], ignore_index=True)


def draw_leak(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """One panel a source of activations, one mark a protocol; below 0.5 a probe is worse than a coin."""
    theme()
    sources = [
        ("planted: no XOR in it, no label", rows[rows.weights == "none"]),
        ("random weights", rows[~rows.weights.isin(["none", "trained"])]),
        ("trained weights", rows[rows.weights == "trained"]),
    ]
    targets = [target for target in shown_targets(design) if (rows.target == target).any()]
    figure, axes = plt.subplots(1, len(sources), figsize=(10.5, 3.3), sharey=True)
    for axis, (title, source) in zip(axes, sources, strict=True):
        for offset, (protocol, (colour, marker, name)) in zip((-0.22, 0.0, 0.22), PROTOCOL_STYLES.items(), strict=True):
            of_protocol = source[source.protocol == protocol].groupby("target")
            mean = of_protocol[["estimate", "lower", "upper"]].mean().reindex(targets)
            axis.errorbar(
                np.arange(len(targets)) + offset,
                mean.estimate,
                yerr=whiskers(mean),
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2,
                linewidth=1,
                label=name,
            )
        axis.set_xticks(
            range(len(targets)),
            [label(target, design.aliases) for target in targets],
            rotation=35,
            ha="right",
        )
        axis.set_title(title)
        axis.axhline(CHANCE, color=GREY, linewidth=1)
        axis.set_ylim(0, 1.03)
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("held-out accuracy")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False, bbox_to_anchor=(0.5, 1.06))
    sns.despine(figure)
    figure.tight_layout()
    return figure


def needed_and_needless(
    probes: pd.DataFrame, behaviour: pd.DataFrame, model: str, design: designs.Design, *, protocol: str, bos: bool
) -> pd.DataFrame:
    """XORs of two features over training, every fold at the layer it chose, and the model's own answers."""
    rows = select_accuracy(probes, model, design, [protocol], bos=bos)
    pairs = rows.target.str.count(r"\^") == 1
    answers = behaviour[
        (behaviour.weights == "trained")
        & (behaviour.model == model)
        & (behaviour.design == design.name)
        & (behaviour.score == "accuracy")
        & (behaviour.bos == bos)
        & behaviour.target.isin(design.needed)
    ]
    return pd.concat([rows[(rows.weights == "trained") & (rows.layer == -1) & pairs], answers], ignore_index=True)


def draw_needed_and_needless(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """One panel a read position: what the model has to compute, what nothing needs, and what it answers."""
    theme()
    positions = [position for position in rows.position.unique() if position != "none"]
    steps = ordered_revisions(rows)
    figure, axes = plt.subplots(1, len(positions), figsize=(4.4 * len(positions), 3.3), sharey=True, squeeze=False)
    primary = "^".join(name for name in design.factors if name in design.primary)
    answers = rows[rows.position == "none"]
    for axis, position in zip(axes[0], positions, strict=True):
        for target in dict.fromkeys(rows[rows.position == position].target):
            line = rows[(rows.target == target) & (rows.position == position)].set_index("revision").reindex(steps)
            needed = target in design.needed
            colour, marker = (GREEN, "o") if needed else (VERMILION, "s") if target == primary else (SKY, "^")
            kind = "needed" if needed else "needless, pre-registered" if target == primary else "needless"
            axis.plot(
                range(len(steps)),
                line.estimate,
                color=colour,
                marker=marker,
                markersize=4,
                label=f"probe of {label(target, design.aliases)} ({kind})",
            )
            axis.fill_between(range(len(steps)), line.lower, line.upper, color=colour, alpha=0.15, linewidth=0)
        for target in dict.fromkeys(answers.target):
            line = answers[answers.target == target].set_index("revision").reindex(steps)
            name = design.aliases.get(target, target)
            axis.plot(
                range(len(steps)),
                line.estimate,
                color=BLACK,
                linestyle="--",
                label=f"the model's own answer to {name}",
            )
        accuracy_axis(axis, f"read at: {position.replace('_', ' ')}", xor=True)
        sparse_ticks(axis, [step.removeprefix("step") for step in steps])
        axis.set_xlabel("training step")
    axes[0, 0].set_ylabel("held-out accuracy")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=2, frameon=False, bbox_to_anchor=(0.5, -0.2))
    sns.despine(figure)
    figure.tight_layout()
    return figure


def geometry(table: pd.DataFrame, model: str, design: designs.Design, *, position: str, bos: bool) -> pd.DataFrame:
    """Geometry of the shown parities at every layer of the last revision of a trained model."""
    rows = table[
        (table.weights == "trained")
        & (table.model == model)
        & (table.design == design.name)
        & (table.position == position)
        & (table.bos == bos)
        & table.score.isin(GEOMETRY_PANELS)
        & table.target.isin(shown_targets(design))
    ]
    return rows[rows.revision == ordered_revisions(rows)[-1]]


def draw_geometry(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """Four panels over layers, a line a parity: salience, gain or own direction, generalisation, parallelism.

    On the logarithmic axis of salience a hollow mark is a value whose interval contains 0, drawn no lower than the floor.
    """
    theme()
    targets = [target for target in shown_targets(design) if (rows.target == target).any()]
    styles = dict(zip(targets, PARITY_STYLES, strict=False))
    figure, grid = plt.subplots(2, 2, figsize=(9.2, 6.2))
    layers = sorted(rows.layer.unique().tolist())
    for axis, (score, (title, levels)) in zip(grid.flat, GEOMETRY_PANELS.items(), strict=True):
        of_score = rows[(rows.score == score) & rows.estimate.notna()]
        for shift, (target, (colour, marker)) in zip(
            np.linspace(-0.12, 0.12, len(targets)), styles.items(), strict=True
        ):
            line = of_score[of_score.target == target].sort_values("layer")
            if not len(line):
                continue
            shown = line.assign(
                estimate=line.estimate.clip(lower=SALIENCE_FLOOR), lower=line.lower.clip(lower=SALIENCE_FLOOR)
            )
            shown = shown if score == "salience" else line
            shown = shown.assign(upper=np.maximum(shown.upper, shown.estimate))
            style = "--" if "^" in target else "-"
            axis.errorbar(
                shown.layer + shift,
                shown.estimate,
                yerr=whiskers(shown),
                color=colour,
                marker=marker,
                linestyle=style,
                markersize=4.5,
                linewidth=1.1,
                elinewidth=0.8,
                capsize=1.5,
                label=label(target, design.aliases),
            )
            hollow = shown[(line.lower <= 0).to_numpy()] if score == "salience" else shown[:0]
            axis.plot(
                hollow.layer + shift,
                hollow.estimate,
                linestyle="none",
                marker=marker,
                markersize=4.5,
                color=colour,
                markerfacecolor="white",
                zorder=5,
            )
        for level in levels:
            axis.axhline(level, color=GREY, linewidth=1, zorder=0)
        if score == "salience":
            axis.set_yscale("log")
            axis.set_ylim(SALIENCE_FLOOR / 1.6, 1.3)
        if not len(of_score):
            axis.text(0.5, 0.5, "nothing told from 0", transform=axis.transAxes, ha="center", color=GREY)
        axis.set_title(title)
        axis.set_xlim(layers[0] - 0.35, layers[-1] + 0.35)
        step = max(1, -(-len(layers) // 9))
        axis.set_xticks(layers[::step], [str(layer) for layer in layers[::step]])
    handles: dict[str, object] = {}
    for axis in grid.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    names = [label(target, design.aliases) for target in targets]
    names = [name for name in names if name in handles]
    figure.supxlabel("layer (0: embedding)", fontsize=9, x=0.4)
    sns.despine(figure)
    figure.tight_layout(rect=(0, 0, 0.77, 1))
    figure.legend(
        [handles[name] for name in names], names, loc="center left", frameon=False, bbox_to_anchor=(0.78, 0.5)
    )
    return figure


def mechanisms(
    interference: pd.DataFrame, ablation: pd.DataFrame, model: str, design: designs.Design, *, mode: str = "mean"
) -> pd.DataFrame:
    """Rows of one ablation mode (the first there is, where this one was not run), and of profiles against interactions.

    At the last revision that was measured, trained weights and the rungs that stand beside them.
    """
    ablated = ablation[(ablation.model == model) & (ablation.design == design.name) & (ablation.score == "accuracy")]
    shared = interference[
        (interference.model == model) & (interference.design == design.name) & (interference.probe == "attribution")
    ]
    ablated = ablated[ablated.revision == ordered_revisions(ablated)[-1]] if len(ablated) else ablated
    shared = shared[shared.revision == ordered_revisions(shared)[-1]] if len(shared) else shared
    modes = [name for name in dict.fromkeys(ablated.probe.str.split(".").str[1]) if name != "none"]
    chosen = mode if mode in modes else next(iter(modes), "none")
    return pd.concat([ablated[ablated.probe.str.split(".").str[1].isin([chosen, "none"])], shared], ignore_index=True)


def draw_mechanisms(rows: pd.DataFrame, design: designs.Design) -> Figure:
    """For each ablated feature and kind of component accuracy against how many are gone; then overlap and interaction."""
    theme()
    ablated = rows[rows.representation == "ablated"]
    parts = ablated.probe.str.split(".", n=3, expand=True).reindex(columns=range(4))
    ablated = ablated.assign(kind=parts[0], k=parts[2].astype(int), feature=parts[3], mode=parts[1])
    features = sorted(ablated.feature.unique(), key=lambda name: (name not in design.primary, name))
    panel_of = [(feature, kind) for feature in features for kind in ("heads", "neurons")]
    figure, grid = plt.subplots(
        1, len(panel_of) + 1, figsize=(2.75 * (len(panel_of) + 1), 3.1), squeeze=False, layout="constrained"
    )
    for axis, (feature, kind) in zip(grid[0], panel_of, strict=False):
        here = ablated[(ablated.feature == feature) & ablated.kind.isin([kind, "none"])]
        _draw_sweep(axis, here, design, feature)
        how = next((name for name in here["mode"] if name != "none"), "")
        axis.set_title(f"{kind} of {feature}", fontsize=9)
        axis.set_xlabel(f"{kind} ablated ({how.replace('_', ' ')})")
    grid[0, 0].set_ylabel("held-out accuracy")
    handles: dict[str, object] = {}
    for axis in grid[0, :-1]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    _draw_overlap(grid[0, -1], rows[rows.probe == "attribution"], design)
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=4, frameon=False)
    sns.despine(figure)
    return figure


def _draw_sweep(axis: Axes, rows: pd.DataFrame, design: designs.Design, feature: str) -> None:
    """The ablated feature, the other one and their XOR over the sweep; dashed for random components."""
    ks = sorted(rows.k.unique().tolist())
    for target in sorted(rows.target.unique(), key=lambda name: (name.count("^"), name != feature)):
        colour, marker, role = (
            (VERMILION, "s", "XOR of the two")
            if "^" in target
            else (BLUE, "o", "the feature itself")
            if target == feature
            else (SKY, "^", "the other feature")
        )
        for control, style, whose in (("none", "-", "its own components"), ("random_components", ":", "random ones")):
            line = rows[(rows.target == target) & rows.control.isin([control, "none"])]
            line = line[(line.control == control) | (line.k == 0)].set_index("k").reindex(ks)
            axis.plot(
                range(len(ks)),
                line.estimate,
                color=colour,
                linestyle=style,
                marker=marker,
                markersize=4 if control == "none" else 0,
                label=f"{role}, {whose}",
            )
            if control == "none":
                axis.fill_between(range(len(ks)), line.lower, line.upper, color=colour, alpha=0.13, linewidth=0)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    accuracy_axis(axis, "", xor=True)
    axis.set_ylim(0.38, 1.03)


def _draw_overlap(axis: Axes, rows: pd.DataFrame, design: designs.Design) -> None:
    """One mark a pair and layer; filled for trained weights."""
    points = rows[rows.score.isin(["profile_overlap", "interaction_ratio"])]
    axis.set_xlabel("overlap of attribution profiles")
    axis.set_ylabel("interaction ‖δ‖² / (‖d_a‖‖d_b‖)")
    axis.set_xlim(0, 1.03)
    if points.empty:
        axis.set_title("no pair has two effects", fontsize=9)
        return
    key = ["weights", "seed", "target", "layer"]
    wide = points.pivot_table(index=key, columns="score", values=["estimate", "lower", "upper"]).reset_index()
    styles = dict(zip(sorted(wide.target.unique()), (VERMILION, GREEN, SKY, PURPLE, ORANGE, BLUE), strict=False))
    for target, colour in styles.items():
        for weights in wide.weights.unique():
            at = wide[(wide.target == target) & (wide.weights == weights)]
            trained = weights == "trained"
            axis.plot(
                at["estimate", "profile_overlap"],
                at["estimate", "interaction_ratio"],
                linestyle="none",
                marker="o" if trained else "D",
                markersize=5 if trained else 4,
                color=colour,
                markerfacecolor=colour if trained else "none",
                label=label(target, design.aliases).split(" = ")[-1] if trained else None,
            )
            if trained:
                axis.vlines(
                    at["estimate", "profile_overlap"],
                    at["lower", "interaction_ratio"],
                    at["upper", "interaction_ratio"],
                    color=colour,
                    linewidth=0.8,
                )
    overall = rows[(rows.score == "spearman") & (rows.weights == "trained")]
    axis.set_yscale("symlog", linthresh=0.1)
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom, 0.0), max(top, 1.0))
    known = overall.estimate.notna().any()
    axis.set_title(f"rank correlation {overall.estimate.iloc[0]:.2f}" if known else "too few points", fontsize=9)
    note = "\nopen: random weights" if wide.weights.nunique() > 1 else ""
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axis.legend(frameon=False, fontsize=7, title=f"one mark a layer{note}", title_fontsize=7, **place)


def whiskers(rows: pd.DataFrame | pd.Series) -> np.ndarray:
    """Lengths of the two arms of each interval; a percentile interval that misses its estimate has an arm of none."""
    return np.maximum([rows.estimate - rows.lower, rows.upper - rows.estimate], 0.0)


def ordered_revisions(rows: pd.DataFrame) -> list[str]:
    """Revisions in order of training; a step of -1 (unknown) comes last."""
    order = rows[["revision", "step"]].drop_duplicates()
    order = order.assign(step=order.step.where(order.step >= 0, np.iinfo(np.int64).max))
    return list(order.sort_values(["step", "revision"]).revision)


def layer_name(layer: int) -> str:
    """Layer 0 is what block 0 reads."""
    return "embedding" if layer == 0 else f"after block {layer}"


def panels(count: int, *, sharex: bool = False, sharey: bool = True, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """A grid of at least `count` axes, PANELS_PER_ROW wide; those left over hold the legend."""
    columns = min(PANELS_PER_ROW, count)
    lines = -(-count // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.7 * columns, height * lines), sharex=sharex, sharey=sharey, squeeze=False
    )
    return figure, list(grid.flat)


def accuracy_axis(axis: Axes, title: str, *, xor: bool, horizontal: bool = False) -> None:
    """Limits, title and the levels an accuracy is read against; 0.75 caps additive representations on XORs only."""
    line = axis.axvline if horizontal else axis.axhline
    line(CHANCE, color=GREY, linewidth=1)
    if xor:
        line(OR_CAP, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    (axis.set_xlim if horizontal else axis.set_ylim)(0.18, 1.03)
    axis.set_title(title)


def sparse_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Names at equal distances, as many of them written as can be read, the last one always."""
    every = max(1, -(-len(names) // 7))
    shown = sorted({*range(0, len(names), every), len(names) - 1})
    if len(shown) > 1 and shown[-1] - shown[-2] < every:
        del shown[-2]
    axis.set_xticks(shown, [names[index] for index in shown])


def finish(
    figure: Figure,
    axes: list[Axes],
    *,
    used: int,
    x: str = "training step",
    y: str = "",
    legend_title: str = "",
) -> None:
    """Legend in the first empty cell of the grid, common axis labels, no box."""
    handles: dict[str, object] = {}
    for axis in axes[:used]:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    for axis in axes[used:]:
        axis.set_axis_off()
    axes[used].legend(handles.values(), handles.keys(), title=legend_title or None, loc="center", frameon=False)
    figure.supxlabel(x, fontsize=9)
    if y:
        figure.supylabel(y, fontsize=9)
    sns.despine(figure)
    figure.tight_layout()
