"""From one number a network to one number a cell: t-intervals over networks, and what was left out and why.

Every experiment on toy networks ends in one row a network and score (`network_row`). A cell is all networks
that share everything but the seed, and

    estimate = mean over its networks,    [lower, upper] = Student's interval over its networks.

A network that could not be built, trained or read has a row like any other, without an estimate and with a
reason. It is left out of the mean and counted in `excluded`; a cell of such networks only is still a row. So
the rows of a table are the cells of the configuration, and what is missing can be seen.

`level` is the score without any information (.5 of an accuracy, NaN where there is no such value);
`prediction` is what a theory says the score is, worked out without the network (NaN where there is none).
Both are drawn beside the estimate.

Pitfalls: an interval over networks says how much networks differ, not how well one is measured. A seed shared
by two kinds of network (trained and random weights) makes their difference paired: `paired` works on
networks, before the mean.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from counterprobe import checksum, statistics
from counterprobe.progress import UserError

NONE = -1  # of a whole-number factor that a row does not have, or that a slope runs over
FACTORS: dict[str, str] = {
    "experiment": "string",  # trained, constructed, genericity, redundancy, geometry
    "claim": "string",  # claim of the ledger; empty for what supports none by itself
    "network": "string",  # trained, init, frozen, random, bernoulli, designated, affine, ..., trained - init
    "setting": "string",  # what else tells two cells apart: loss, kind of input, kind of sweep
    "target": "string",  # what is read or counted: and, xor, xor_needless, feature, ...
    "readout": "string",  # how it is read: logistic, least_squares, indicator, minimax, mean, own, none
    "m": "integer",  # features
    "d": "integer",  # width
    "s": "number",  # active features in a text
    "p": "number",  # connection probability, or another continuous parameter named in `setting`
    "depth": "integer",  # layers
    "copies": "integer",  # copies of each coordinate
    "score": "string",
}
NETWORK_COLUMNS = {
    **FACTORS,
    "seed": "integer",
    "level": "number",
    "prediction": "number",
    "estimate": "number",
    "n_texts": "integer",  # held out, for each network
    "reason": "string",
}
CELL_COLUMNS = {
    **FACTORS,
    "level": "number",
    "prediction": "number",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "n_networks": "integer",
    "n_texts": "integer",
    "excluded": "integer",
    "reason": "string",
}
PANDAS_TYPES = {"string": object, "integer": np.int64, "number": np.float64, "boolean": np.bool_}
ARROW_TYPES = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
ABSENT: dict[str, object] = {"string": "", "integer": NONE, "number": float("nan")}


def network_row(**values: object) -> dict[str, object]:
    """One network's number, or the reason why it has none; what is not given is absent.

    Raises ValueError for an unknown column, for an estimate that is not finite without a reason (a NaN nobody
    explains is a bug of ours), and for a reason beside an estimate.
    """
    unknown = set(values) - set(NETWORK_COLUMNS)
    if unknown:
        raise ValueError(f"no such columns: {sorted(unknown)}")
    row = {name: values.get(name, ABSENT[kind]) for name, kind in NETWORK_COLUMNS.items()}
    if bool(np.isfinite(row["estimate"])) == bool(row["reason"]):
        raise ValueError(f"a row has a finite estimate or a reason, one of the two: {row}")
    return row


def networks(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """A frame of `network_row`s in canonical order. ValueError where two rows say different things about one
    network.
    """
    table = typed(pd.DataFrame(list(rows), columns=list(NETWORK_COLUMNS)), NETWORK_COLUMNS)
    key = [*FACTORS, "seed"]
    twice = table.duplicated(key)
    if twice.any():
        raise ValueError(f"two rows for one network: {table.loc[twice.idxmax(), key].to_dict()}")
    return table.sort_values(key, kind="stable", ignore_index=True)


def cells(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean and Student's interval of every cell; an interval needs two networks, and is NaN for one."""
    rows = []
    for key, group in table.groupby(list(FACTORS), sort=True, dropna=False):
        values = group.estimate.dropna().to_numpy()
        row = dict(zip(FACTORS, key, strict=True))
        row |= {
            "level": _first_known(group.level),
            "prediction": _mean(group.prediction),
            "estimate": _mean(values),
        }
        row |= {"lower": np.nan, "upper": np.nan}
        if len(values) > 1:
            interval = statistics.t_interval(values, confidence)
            row |= {"lower": float(interval.lower), "upper": float(interval.upper)}
        row |= {
            "n_networks": len(values),
            "n_texts": group.n_texts.max(),
            "excluded": len(group) - len(values),
            "reason": "; ".join(sorted(set(group.reason) - {""})),
        }
        rows.append(row)
    return typed(pd.DataFrame(rows, columns=list(CELL_COLUMNS)), CELL_COLUMNS)


def paired(
    table: pd.DataFrame,
    column: str,
    first: str,
    second: str,
    combine: Callable[[float, float], float],
    *,
    name: str,
    score: str | None = None,
    level: float = 0.0,
) -> list[dict[str, object]]:
    """Rows for `combine(first, second)` of every pair of networks that differ in `column` alone.

    `name` is the new value of `column`, `score` a new name of the score where the old one no longer fits. A
    pair with one side excluded is excluded, for that side's reason.
    """
    key = [other for other in (*FACTORS, "seed") if other != column]
    left = table[table[column] == first]
    right = table[table[column] == second]
    pairs = left.merge(right, on=key, suffixes=("", "_other"), validate="one_to_one")
    rows = []
    for _, pair in pairs.iterrows():
        values = {factor: pair[factor] for factor in key}
        values |= {column: name, "level": level, "n_texts": pair.n_texts, "score": score or pair.score}
        reason = "; ".join(sorted({pair.reason, pair.reason_other} - {""}))
        if reason:
            rows.append(network_row(**values, reason=reason))
            continue
        rows.append(network_row(**values, estimate=combine(pair.estimate, pair.estimate_other)))
    return rows


def slopes(table: pd.DataFrame, x: np.ndarray, factors: Mapping[str, object], *, score: str) -> list[dict[str, object]]:
    """Least-squares slope of the estimates on x for every seed, one row a seed; x has one entry a row of
    `table`.

    A slope per seed, so that the interval over seeds contains everything by which seeds differ. `factors`
    replace the columns over which the slope runs. A seed with fewer than three cells left is excluded.
    """
    rows = []
    for seed, index in table.groupby("seed").indices.items():
        group, at = table.iloc[index], x[index]
        kept = group.estimate.notna().to_numpy()
        common = {name: group[name].iloc[0] for name in FACTORS} | dict(factors) | {"score": score, "seed": seed}
        if kept.sum() < 3:
            why = "; ".join(sorted(set(group.reason) - {""})) or "the sweep has fewer than three values"
            rows.append(network_row(**common, reason=f"a slope needs three cells and has {kept.sum()}: {why}"))
            continue
        slope = np.polyfit(at[kept], group.estimate.to_numpy()[kept], 1)[0]
        rows.append(network_row(**common, level=0.0, estimate=float(slope), n_texts=group.n_texts.max()))
    return rows


def write(table: pd.DataFrame, path: str | Path, columns: Mapping[str, str] = NETWORK_COLUMNS) -> None:
    """Parquet with its checksum and nothing volatile: equal tables are equal files (with one version of pyarrow)."""
    schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in columns.items()])
    arrow = pa.Table.from_pandas(table[list(columns)], schema=schema, preserve_index=False)
    Path(path).write_bytes(checksum.parquet(arrow.replace_schema_metadata(None)))


def read(path: str | Path, columns: Mapping[str, str] = NETWORK_COLUMNS) -> pd.DataFrame:
    """A table that `write` wrote. UserError names a file that is no such table, or was damaged."""
    table = checksum.read_parquet(path).to_pandas()
    if list(table) != list(columns):
        odd = sorted(set(table) ^ set(columns)) or "their order"
        raise UserError(f"{path}: not a table of toy networks of this version ({odd} differ); delete it and run again")
    return typed(table, columns)


def typed(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Exactly these columns, in this order, with the types that a file keeps."""
    return table[list(columns)].astype({name: PANDAS_TYPES[kind] for name, kind in columns.items()})


def _first_known(values: pd.Series) -> float:
    """A row with a reason need not know the level of its score."""
    known = values.dropna()
    return float(known.iloc[0]) if len(known) else float("nan")


def _mean(values: pd.Series | np.ndarray) -> float:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")
