from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import checksum, tables
from counterprobe.progress import UserError

ROW = {
    "model": "embedded",
    "revision": "step8",
    "step": 8,
    "weights": "trained",
    "embeddings": "kept",
    "seed": 0,
    "design": "factorial",
    "position": "period",
    "bos": True,
    "layer": 2,
    "target": "speaker^negated",
    "protocol": "carriers",
    "probe": "logistic",
    "control": "none",
    "representation": "activations",
    "score": "accuracy",
    "level": 0.5,
    "estimate": 0.75,
    "lower": 0.7,
    "upper": 0.8,
    "n_texts": 64,
    "n_groups": 4,
    "note": "",
}
# Written out here on purpose: other programs rely on these names and this order.
CONTRACT = [
    *("model", "revision", "step", "weights", "embeddings", "seed", "design", "position", "bos", "layer"),
    *("target", "protocol", "probe", "control", "representation", "score", "level"),
    *("estimate", "lower", "upper", "n_texts", "n_groups", "note"),
]


def test_columns_are_those_of_the_contract_and_the_written_schema_is_theirs():
    assert list(tables.COLUMNS) == CONTRACT
    written = yaml.safe_load((Path(__file__).parents[2] / "workflow/schemas/tables.yaml").read_text())
    assert written == tables.schema()
    jsonschema.validate(ROW, written)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ROW | {"bos": 1}, written)


def test_rows_keep_their_values_and_types():
    table = tables.frame([ROW])
    assert table.iloc[0].to_dict() == ROW
    assert [table[c].dtype.kind for c in ("step", "bos", "level", "model")] == ["i", "b", "f", "O"]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)))
def test_the_bytes_of_a_table_do_not_depend_on_the_order_of_its_rows(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("tables")
    rows = [ROW | {"layer": 10 - i, "seed": i % 2} for i in range(6)]
    tables.write(pd.DataFrame(rows), folder / "a.parquet")
    tables.write(pd.DataFrame([rows[i] for i in order]), folder / "b.parquet")
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_a_file_comes_back_and_holds_no_pandas_metadata(tmp_path):
    table = tables.frame([ROW, ROW | {"score": "bits", "level": np.nan, "lower": np.nan, "upper": np.nan}])
    tables.write(table, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(tables.read(tmp_path / "t.parquet"), table)
    assert b"pandas" not in (pq.read_schema(tmp_path / "t.parquet").metadata or {})


def test_gather_sorts_and_refuses_the_same_row_twice(tmp_path):
    for i in range(3):
        tables.write(pd.DataFrame([ROW | {"layer": 2 - i}]), tmp_path / f"{i}.parquet")
    parts = [tmp_path / f"{i}.parquet" for i in range(3)]
    together = tables.gather(parts)
    assert list(together["layer"]) == [0, 1, 2]
    pd.testing.assert_frame_equal(together, tables.gather(parts[::-1]))
    with pytest.raises(ValueError, match="two rows with one key"):
        tables.gather([*parts, parts[0]])


def test_an_empty_table_has_every_column(tmp_path):
    tables.write(tables.gather([]), tmp_path / "t.parquet")
    assert list(tables.read(tmp_path / "t.parquet")) == CONTRACT


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("step", 1.5),
        ("step", True),
        ("bos", 1),
        ("estimate", np.inf),
        ("estimate", "high"),
        ("weights", "shuffled"),
        ("protocol", "carrier"),
        ("model", None),
        ("lower", 0.9),
    ],
)
def test_a_wrong_value_is_named(column, value):
    with pytest.raises(ValueError, match=column):
        tables.frame([ROW | {column: value}])


def test_columns_too_many_or_too_few_are_named():
    with pytest.raises(ValueError, match="accuracy"):
        tables.frame([ROW | {"accuracy": 1.0}])
    with pytest.raises(ValueError, match="target"):
        tables.frame([{k: v for k, v in ROW.items() if k != "target"}])


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"cut\.parquet"):
        tables.read(tmp_path / "cut.parquet")
    (tmp_path / "other.parquet").write_bytes(checksum.parquet(pa.table({"model": ["x"]})))
    with pytest.raises(UserError, match=r"other\.parquet.*step"):
        tables.read(tmp_path / "other.parquet")
