"""Claims of two experiments side by side.

    moved     difference of the estimates, second − first
    noise     half the width of its 95% interval, √(h₁² + h₂²), h half the width of each: as if the two were independent
    change    verdict, where the two disagree; moved, where |moved| > noise; within noise; no interval, where one has none;
              not comparable, where an estimate is missing or is about another statistic

Pitfalls: two experiments that share texts or models are not independent, and what moves together looks like noise; of 50
claims that did not change two or three are beyond it. A claim's estimate is that of the criterion that decides it: where
another one decides, the numbers are about different things, and are not compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from counterprobe import checksum
from counterprobe.progress import UserError

COLUMNS = (
    "claim",
    "verdict_first",
    "verdict_second",
    "estimate_first",
    "estimate_second",
    "moved",
    "noise",
    "change",
    "statistic",
)


def read(experiment: str) -> pd.DataFrame:
    """The claims of one experiment. UserError where it has not run."""
    path = Path("results", experiment, "tables", "claims.parquet")
    if not path.is_file():
        raise UserError(f"{path}: no such file; run experiment {experiment} first, or change `compare`")
    return checksum.read_parquet(path).to_pandas()


def compare(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """One row for each claim that either has, with the columns of `COLUMNS`."""
    both = first.merge(second, on="claim", how="outer", suffixes=("_first", "_second"))
    for side in ("first", "second"):
        both[f"verdict_{side}"] = both[f"verdict_{side}"].fillna("not in the ledger")
    half = [(both[f"upper_{side}"] - both[f"lower_{side}"]) / 2 for side in ("first", "second")]
    same = both.statistic_first == both.statistic_second
    both["moved"] = (both.estimate_second - both.estimate_first).where(same)
    both["noise"] = np.hypot(*half).where(same)
    both["statistic"] = both.statistic_first.fillna(both.statistic_second)
    both["change"] = np.select(
        [
            both.verdict_first != both.verdict_second,
            both.moved.isna(),
            both.noise.isna(),
            both.moved.abs() > both.noise,
        ],
        ["verdict", "not comparable", "no interval", "moved"],
        "within noise",
    )
    return both[list(COLUMNS)]


def write(table: pd.DataFrame, first: str, second: str) -> None:
    """Every row, as results/FIRST/compare_SECOND.csv."""
    table.to_csv(Path("results", first, f"compare_{second}.csv"), index=False)


def text(table: pd.DataFrame, first: str, second: str) -> str:
    """What a person reads: claims whose verdict changed, then those that moved, then how many did neither."""
    shown = table[table.change.isin(["verdict", "moved"])].sort_values(["change", "claim"], ascending=[False, True])
    lines = [f"{'claim':<6} {first:<22} {second:<22} {'moved':>9} {'noise':>9}"]
    for row in shown.itertuples():
        sides = (_side(row.verdict_first, row.estimate_first), _side(row.verdict_second, row.estimate_second))
        lines.append(f"{row.claim:<6} {sides[0]:<22} {sides[1]:<22} {_number(row.moved):>9} {_number(row.noise):>9}")
    rest = table[~table.change.isin(["verdict", "moved"])].change.value_counts().sort_index()
    lines.append("; ".join(f"{count} {kind}" for kind, count in rest.items()) or "nothing else")
    return "\n".join(lines)


def _side(verdict: str, estimate: float) -> str:
    return verdict if np.isnan(estimate) else f"{verdict} {_number(estimate)}"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"
