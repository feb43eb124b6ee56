"""The figure of the calibration: how often each verdict is wrong, and how small an effect it finds."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from counterprobe import plots

ALPHA, POWER = 0.05, 0.9
VERDICT_STYLES = {
    "decodable": (plots.BLUE, "o", "decodable"),
    "learned": (plots.VERMILION, "s", "learned"),
    "used": (plots.GREEN, "D", "used"),
    "absent": (plots.GREY, "v", "absent"),
    "not_used": (plots.GREY, "v", "not used here"),
}
FAMILIES = {
    "additive": "additive",
    "look_ups": "name look-ups",
    "mixing": "interactions of all orders",
    "seeds": "trained is one more seed",
    "orthogonal": "read-out orthogonal",
    "unrelated": "read-out unrelated",
}
CURVES = {
    "decodable": ("items held out", "‖δ‖ in within-cell s.d."),
    "decodable_carriers": ("items and names held out", "‖δ‖ in within-cell s.d."),
    "learned": ("learned, names held out", "‖δ‖ in within-cell s.d."),
    "used": ("used", "share of the read-out's gap"),
}


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows, with the effect of each row in a column of its own."""
    effects = table[table.score == "effect"].set_index(["model", "revision"]).estimate
    shown = table[table.score.str.startswith(("called_", "effect_at_90_"))].copy()
    shown.insert(2, "effect", [effects.get(key, np.nan) for key in zip(shown.model, shown.revision, strict=True)])
    return shown


def draw(shown: pd.DataFrame) -> Figure:
    """False positives of every family × verdict beside their bound; then one panel a power curve."""
    plots.theme()
    curves = [name for name in CURVES if (shown.model == f"planted-power_{name}").any()]
    figure, axes = plots.panels(1 + len(curves) + 1, sharey=False, height=2.6)
    false_positives(axes[0], shown)
    for axis, name in zip(axes[1:], curves, strict=False):
        power_curve(axis, shown[shown.model == f"planted-power_{name}"], *CURVES[name])
    legend(axes[len(curves) + 1])
    for axis in axes[len(curves) + 2 :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure


def false_positives(axis: Axes, shown: pd.DataFrame) -> None:
    """Wrong verdicts only: their level is .05."""
    wrong = shown[shown.level == ALPHA]
    places, names = [], []
    for family, name in FAMILIES.items():
        for _, row in wrong[wrong.model == f"planted-{family}"].iterrows():
            colour, marker, _ = VERDICT_STYLES[row.score.removeprefix("called_")]
            places.append(len(places))
            names.append(name if name not in names else "")
            axis.errorbar(
                row.estimate, places[-1], xerr=plots.whiskers(row)[:, None], color=colour, marker=marker, markersize=4
            )
    if places:
        draws = int(wrong.n_groups.min())
        most = stats.binom.ppf(0.975, draws, ALPHA)
        axis.axvline(ALPHA, color=plots.BLACK, linewidth=0.8)
        axis.axvline(most / draws, color=plots.BLACK, linewidth=0.8, linestyle="--")
        axis.set_title(f"wrong (dashed: {most:.0f} of {draws})")
    axis.set_yticks(places, names)
    axis.set_xlim(left=0)
    axis.invert_yaxis()
    axis.set_xlabel("share of planted models")


def power_curve(axis: Axes, curve: pd.DataFrame, title: str, x: str) -> None:
    """Rates of every verdict against the planted effect, and where the last one passes 90%."""
    for verdict, (colour, marker, _) in VERDICT_STYLES.items():
        line = curve[curve.score == f"called_{verdict}"].sort_values("effect")
        if not len(line):
            continue
        axis.plot(line.effect, line.estimate, color=colour, marker=marker, markersize=4)
        axis.fill_between(line.effect, line.lower, line.upper, color=colour, alpha=0.15, linewidth=0)
        smallest = curve[curve.score == f"effect_at_90_{verdict}"].estimate
        if smallest.notna().any():
            axis.axvline(smallest.iloc[0], color=colour, linewidth=0.8, linestyle=":")
            axis.text(smallest.iloc[0], 0.5, f" {smallest.iloc[0]:.2g}", color=colour, fontsize=8)
    axis.axhline(POWER, color=plots.BLACK, linewidth=0.6, linestyle="--")
    axis.set_ylim(-0.03, 1.03)
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel("share of planted models")


def legend(axis: Axes) -> None:
    """In a panel of its own: curves leave no room."""
    axis.axis("off")
    handles = [
        axis.plot([], [], color=colour, marker=marker, label=name)[0]
        for verdict, (colour, marker, name) in VERDICT_STYLES.items()
        if verdict != "not_used"
    ]
    handles[-1].set_label("absent, not used here")
    axis.legend(handles=handles, title="verdict", loc="center", frameon=False)
