"""The result table: one tidy row per measured number, in one fixed schema.

Every table of results (probes, behaviour, ...) has the columns of `COLUMNS`, in that order: the factors that
say what was measured, then `score`, then `level` (the value the score takes when there is no information: .5
for an accuracy, 0 for bits, NaN where meaningless), then the number with its 95% interval and sample sizes.

This module is the one source of the schema. `workflow/schemas/tables.yaml` is its JSON Schema for readers and
for other programs; a test holds the two together, `python -m counterprobe.tables` prints it.

Pitfalls: the key of a row is everything up to `score`; two rows with one key are an error, since a figure
would silently average them. Files are byte-identical for equal tables: fixed row order, no pandas metadata,
no times.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from counterprobe import checksum
from counterprobe.progress import UserError


@dataclass(frozen=True)
class Column:
    """`kind` is JSON Schema's name of the type; `allowed` are the only values, where they are few."""

    kind: str
    meaning: str
    allowed: tuple[str, ...] = ()


COLUMNS: dict[str, Column] = {
    "model": Column("string", "name of the model in the configuration"),
    "revision": Column("string", "revision (checkpoint) of the model"),
    "step": Column("integer", "training step of the revision; -1 where unknown"),
    "weights": Column(
        "string",
        "trained, or the rung of the ladder of weight controls (of an embedding matrix alone: matched_gaussian, "
        "shuffled_columns); none where no model was read",
        (
            "trained",
            "init",
            "gaussian",
            "permuted_entries",
            "spectrum",
            "spectrum_left",
            "spectrum_right",
            "permuted_columns",
            "matched_gaussian",
            "shuffled_columns",
            "none",
        ),
    ),
    "embeddings": Column("string", "whether the rung kept the embeddings", ("kept", "randomised")),
    "seed": Column("integer", "seed of the rung or of the planted draw; 0 for trained weights"),
    "design": Column("string", "name of the design in the configuration"),
    "position": Column("string", "token that is read; none where nothing is read"),
    "bos": Column("boolean", "whether a beginning-of-sequence token came first"),
    "layer": Column("integer", "0 = embedding output, l = residual after block l; -1 = the whole model"),
    "target": Column("string", "Walsh parity that is read, in canonical form, or another named target"),
    "protocol": Column("string", "what the split holds out", ("carriers", "items", "published", "none")),
    "probe": Column("string", "probe or estimator; none where the number needs none"),
    "control": Column(
        "string",
        "label control, kind of null direction, or random components (or neurons) in place of chosen ones",
        (
            "none",
            "dichotomy",
            "shuffled",
            "control_task",
            "within_cell",
            "isotropic",
            "total",
            "random_components",
            "random_neurons",
        ),
    ),
    "representation": Column(
        "string",
        "what the probe was trained on",
        ("activations", "token_embeddings", "additive_surrogate", "erased", "ablated", "neurons"),
    ),
    "score": Column("string", "name of the number: accuracy, auroc, bits, worst_cell, ..."),
    "level": Column("number", "the score without any information; NaN where there is no such level"),
    "estimate": Column("number", "the number"),
    "lower": Column("number", "lower end of its 95% interval; NaN where it has none"),
    "upper": Column("number", "upper end of its 95% interval; NaN where it has none"),
    "n_texts": Column("integer", "texts behind the number"),
    "n_groups": Column("integer", "independent groups (items, carrier units or seeds) behind the interval"),
    "note": Column("string", "what a reader must know about this number; empty otherwise"),
}
KEY = tuple(COLUMNS)[: list(COLUMNS).index("score") + 1]
# In files NaN is null, which readers other than pandas understand; object strings keep pandas 2 and 3 alike.
ARROW_TYPES = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
SCHEMA = pa.schema([pa.field(n, ARROW_TYPES[c.kind], nullable=c.kind == "number") for n, c in COLUMNS.items()])
# What a row says of a factor that its number does not have; a row names only what it does have.
NOT_APPLICABLE = {
    "embeddings": "kept",
    "seed": 0,
    "position": "none",
    "bos": False,
    "layer": -1,
    "target": "none",
    "protocol": "none",
    "probe": "none",
    "control": "none",
    "representation": "activations",
    "level": float("nan"),
    "lower": float("nan"),
    "upper": float("nan"),
    "note": "",
}
PANDAS_TYPES = {"string": object, "integer": np.int64, "number": np.float64, "boolean": np.bool_}


def frame(rows: Iterable[Mapping[str, object]] | pd.DataFrame) -> pd.DataFrame:
    """A checked table in canonical row order, from mappings column -> value or from another frame.

    `note` may be left out (empty). Raises ValueError, naming column and value, for a missing or unknown
    column, a value of another type or outside the column's list, infinity, lower > upper, or two rows with
    one key.
    """
    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if not len(table):
        table = table.reindex(columns=list(COLUMNS))
    if "note" not in table:
        table["note"] = ""
    unknown, missing = set(table) - set(COLUMNS), set(COLUMNS) - set(table)
    if unknown or missing:
        raise ValueError(f"result table: unknown columns {sorted(unknown)}, missing columns {sorted(missing)}")
    table = pd.DataFrame({name: _typed(table[name], name) for name in COLUMNS})
    crossed = np.flatnonzero(table["lower"].to_numpy() > table["upper"].to_numpy())
    if len(crossed):
        raise ValueError(f"result table: lower > upper in row {table.iloc[crossed[0]].to_dict()}")
    table = table.sort_values(list(KEY), kind="stable", ignore_index=True)
    twice = table.duplicated(list(KEY))
    if twice.any():
        raise ValueError(f"result table: two rows with one key, {table.loc[twice.idxmax(), list(KEY)].to_dict()}")
    return table


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Writes a table as Parquet with its checksum; equal tables give equal bytes (with one version of pyarrow)."""
    arrow = pa.Table.from_pandas(frame(table), schema=SCHEMA, preserve_index=False)
    # from_pandas adds pandas' version and column types as metadata: they say nothing that SCHEMA does not.
    Path(path).write_bytes(checksum.parquet(arrow.replace_schema_metadata(None)))


def read(path: str | Path) -> pd.DataFrame:
    """Reads a table. UserError names a file that is missing, was damaged, or has another schema."""
    arrow = checksum.read_parquet(path)
    if not arrow.schema.equals(SCHEMA, check_metadata=False):
        odd = sorted(set(arrow.schema.names) ^ set(SCHEMA.names)) or "column types or order"
        raise UserError(f"{path}: not a result table of this version ({odd} differ); delete it and run again")
    return frame(arrow.to_pandas())


def gather(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One table from many parts; its row order depends on the rows alone, never on the order of `paths`."""
    if not paths:
        return frame([])
    return frame(pd.concat([read(path) for path in paths], ignore_index=True))


def schema() -> dict:
    """The JSON Schema of a table's rows (draft 2020-12), as workflow/schemas/tables.yaml holds it."""
    properties = {}
    for name, column in COLUMNS.items():
        kind: object = ["number", "null"] if column.kind == "number" else column.kind
        properties[name] = {"type": kind, "description": column.meaning}
        if column.allowed:
            properties[name]["enum"] = list(column.allowed)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Row of a result table",
        "description": "Columns in their order; NaN is null; the key of a row is everything up to score.",
        "type": "object",
        "additionalProperties": False,
        "required": list(COLUMNS),
        "properties": properties,
    }


def _typed(values: pd.Series, name: str) -> pd.Series:
    column = COLUMNS[name]
    valid = {
        "string": lambda v: isinstance(v, str),
        "integer": lambda v: isinstance(v, (int, np.integer)) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, (int, float, np.integer, np.floating)) and not np.isinf(v),
        "boolean": lambda v: isinstance(v, (bool, np.bool_)),
    }[column.kind]
    # One look per distinct value: tables have many rows and few values a column.
    for value in pd.unique(values):
        if not valid(value) or (column.allowed and value not in column.allowed):
            expected = f"one of {', '.join(column.allowed)}" if column.allowed else f"a finite {column.kind}"
            raise ValueError(f"result table, column {name}: {value!r} is not {expected}")
    return values.astype(PANDAS_TYPES[column.kind])


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
