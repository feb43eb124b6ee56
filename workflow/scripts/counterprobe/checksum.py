"""Files that vouch for themselves: tables, designs and tensors carry the SHA-256 of all their bytes.

A folder has a manifest; a single file between two jobs has this. The digest stands in the file's own metadata
(Parquet: a key of the footer; safetensors: `__metadata__` of the header) and is taken over the file with zeros in
its place:

    sha256 = SHA-256(file, the 64 digits of `sha256` replaced by 0)

So any reader of the format still reads the file, equal contents are still equal bytes, and not one byte can change
unseen. Parquet's own page checksums (CRC-32 of page data,
https://parquet.apache.org/docs/file-format/data-pages/checksumming/) would leave out page headers and the footer:
column names, types, statistics, and all that a design keeps in its metadata.

Pitfall: a checksum finds damage, not intent; whoever rewrites a file can write its checksum, too.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from counterprobe.progress import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

KEY = "sha256"
ZEROS = "0" * 64
# The value behind its key: Thrift's compact protocol (field 2, a string of 64 bytes) in Parquet, JSON in safetensors.
FIELD = re.compile(rb'sha256(?:\x18\x40|":")([0-9a-f]{64})')


def parquet(table: pa.Table) -> bytes:
    """A table as zstd Parquet with its checksum; equal tables give equal bytes (with one version of pyarrow)."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=1 << 20)
        writer.add_key_value_metadata({KEY: ZEROS})
    return _sealed(sink.getvalue())


def read_parquet(path: str | Path) -> pa.Table:
    """Read a file of what `parquet` gave. Raises UserError naming a file that is missing or was damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(_verified(path)))


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors of any device as safetensors with their checksum."""
    from safetensors.torch import save

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return _sealed(save(on_cpu, metadata={KEY: ZEROS}))


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file of what `safetensors` gave, onto the CPU. Raises UserError naming a file that is missing or was damaged."""
    from safetensors.torch import load

    return load(_verified(path))


def _sealed(data: bytes) -> bytes:
    fields = list(FIELD.finditer(data))
    if len(fields) != 1 or fields[0][1] != ZEROS.encode():
        raise ValueError(f"{len(fields)} fields look like a checksum, so none can be told from data")
    start, end = fields[0].span(1)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[end:]


def _verified(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the rule that writes it") from None
    fields = list(FIELD.finditer(data))
    if len(fields) != 1:
        raise UserError(f"{path}: damaged, cut short or not of this version (no checksum); delete it and run again")
    start, end = fields[0].span(1)
    if hashlib.sha256(data[:start] + ZEROS.encode() + data[end:]).hexdigest().encode() != fields[0][1]:
        raise UserError(f"{path}: damaged, its bytes do not match its checksum; delete it and run again")
    return data
