"""Files that vouch for themselves: readable by everybody, equal for equal contents, and no changed byte goes unseen."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from counterprobe import checksum
from counterprobe.progress import UserError

TABLE = pa.table({"name": ["a", "b", "c"], "value": [1.0, 2.0, None]}).replace_schema_metadata({"about": '{"x": 1}'})
TENSORS = {"w": torch.arange(12.0).reshape(3, 4).T, "b": torch.tensor([1, 2], dtype=torch.int64)}
FILES = {
    "table.parquet": (checksum.parquet(TABLE), checksum.read_parquet),
    "directions.safetensors": (checksum.safetensors(TENSORS), checksum.read_safetensors),
}


def test_a_table_comes_back_also_to_readers_that_know_nothing_of_checksums(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(FILES["table.parquet"][0])
    back = checksum.read_parquet(path)
    assert back.equals(TABLE)
    assert back.schema.metadata[b"about"] == b'{"x": 1}'
    pd.testing.assert_frame_equal(pd.read_parquet(path), TABLE.to_pandas())


def test_tensors_come_back_also_to_readers_that_know_nothing_of_checksums(tmp_path):
    path = tmp_path / "directions.safetensors"
    path.write_bytes(FILES["directions.safetensors"][0])
    for back in (checksum.read_safetensors(path), load_file(path)):
        assert {name: tensor.dtype for name, tensor in back.items()} == {"w": torch.float32, "b": torch.int64}
        np.testing.assert_array_equal(back["w"], TENSORS["w"])


def test_equal_contents_are_equal_bytes():
    assert checksum.parquet(TABLE) == FILES["table.parquet"][0]
    assert checksum.safetensors(TENSORS) == FILES["directions.safetensors"][0]
    assert checksum.parquet(TABLE.slice(0, 2)) != FILES["table.parquet"][0]


@pytest.mark.parametrize("name", sorted(FILES))
@given(data=st.data(), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unseen(tmp_path_factory, name, data, flip):
    whole, read = FILES[name]
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= flip
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(changed)
    with pytest.raises(UserError, match=name):
        read(path)


@pytest.mark.parametrize("name", sorted(FILES))
@given(data=st.data())
def test_no_missing_byte_goes_unseen(tmp_path_factory, name, data):
    whole, read = FILES[name]
    path = tmp_path_factory.mktemp("truncated") / name
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError, match=name):
        read(path)


def test_a_file_without_a_checksum_or_no_file_is_named(tmp_path):
    TABLE.to_pandas().to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(UserError, match=r"plain\.parquet.*no checksum"):
        checksum.read_parquet(tmp_path / "plain.parquet")
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        checksum.read_parquet(tmp_path / "absent.parquet")


def test_data_that_looks_like_a_checksum_is_refused_when_written():
    misleading = TABLE.replace_schema_metadata({"about": 'sha256":"' + "1" * 64})
    with pytest.raises(ValueError, match="fields look like a checksum"):
        checksum.parquet(misleading)
