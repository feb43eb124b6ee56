"""The small file that stands for a big artefact: `manifest.json`, written last and atomically.

    {"schema": 1,
     "content": {..., "files": {"layer_00.npy": {"size": 3145728, "sha256": "..."}}},
     "run": {"host": ..., "started": ..., "seconds": ..., "peak_memory_mb": ...},
     "checksum": "..."}

`content` holds whatever determines the artefact; `run` what differs between two equal runs. Digests are taken
over `content` only, so a rerun on another evening has the same digest. Rules take the manifest as their input
instead of the data: it is small enough for Snakemake to compare by checksum, and a consumer that calls
`verify` turns a truncated or edited file into an error that names it, never into a wrong number. `checksum` is the
SHA-256 of the rest of the manifest, as canonical JSON: a changed digit in the manifest itself is found as well.

Pitfall: a folder without a manifest is an unfinished artefact, however complete its files look.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from counterprobe.progress import UserError
from counterprobe.spec import canonical
from counterprobe.spec import digest as sha256

NAME = "manifest.json"
SCHEMA = 2
FULL = (errno.ENOSPC, errno.EDQUOT)


def write(path: str | Path, content: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write a manifest atomically. Raises TypeError or ValueError for content without canonical JSON."""
    document = {"schema": SCHEMA, "content": content, "run": run}
    document["checksum"] = sha256(canonical(document))
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: str | Path) -> dict[str, Any]:
    """The manifest: keys `schema`, `content`, `run`, `checksum`. Raises UserError where it is missing, damaged or not ours."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest; delete the folder and run again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete the folder and run again") from None
    problem = _malformed(document)
    if problem:
        raise UserError(f"{path}: {problem}; delete the folder and run again")
    return document


def verify(path: str | Path, *, root: str | Path | None = None, hashes: bool = True) -> dict[str, Any]:
    """`read`, then compare every file in `content.files` with its size and, unless `hashes` is off, its
    SHA-256.

    Names are relative to `root`, by default the manifest's own folder. Sizes of all files come first: they
    cost nothing and catch every truncation. Raises UserError naming the first file that differs.
    """
    document = read(path)
    folder = Path(root) if root is not None else Path(path).parent
    files = document["content"].get("files", {})
    advice = "delete the folder and run again"
    for name, entry in files.items():
        file = folder / name
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise UserError(f"{file}: missing, but the manifest lists it; {advice}") from None
        if size != entry["size"]:
            raise UserError(f"{file}: {size:,} bytes where the manifest says {entry['size']:,}; {advice}")
    for name, entry in files.items() if hashes else ():
        found = sha256_file(folder / name)
        if found != entry["sha256"]:
            raise UserError(
                f"{folder / name}: sha256 {found[:12]}… where the manifest says {entry['sha256'][:12]}…; {advice}"
            )
    return document


def digest(source: str | Path | Mapping[str, Any]) -> str:
    """Digest of a manifest's `content`, given its path or the document."""
    document = source if isinstance(source, Mapping) else read(source)
    return sha256(canonical(document["content"]))


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`{relative path: {"size", "sha256"}}` of all files below a folder, its own manifest aside.

    Hidden files do not count: a job that was killed leaves the temporary ones of `atomic` behind.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("[!.]*") if file.is_file() and file != folder / NAME)
    return {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for file in files
    }


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise.

    A reader sees the old file or the whole new one, also after a power cut: the data reaches the disk before
    the name does. Raises UserError where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, for writers that choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{path}: no space left on the disk; free some and run again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _malformed(document: Any) -> str | None:
    if not isinstance(document, dict) or not {"schema", "content", "run"} <= set(document):
        return "a manifest has the keys schema, content and run"
    if document["schema"] != SCHEMA:
        return f"schema {document['schema']!r} where this version writes {SCHEMA}"
    if not isinstance(document["content"], dict) or not isinstance(document["run"], dict):
        return "content and run must be mappings"
    files = document["content"].get("files", {})
    if not isinstance(files, dict):
        return "content.files must be a mapping"
    for name, entry in files.items():
        whole = isinstance(entry, dict) and isinstance(entry.get("size"), int)
        if not whole or not isinstance(entry.get("sha256"), str):
            return f"content.files has no size and sha256 for {name!r}"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"content.files names {name!r}, which lies outside the folder"
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return None if document.get("checksum") == sha256(canonical(rest)) else "its text does not match its checksum"
