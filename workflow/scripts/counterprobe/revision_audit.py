"""Are a model's revisions what their names say? Answered from the hub's metadata, before anything is fetched.

Each revision of a training run should hold weights of its own. Public suites break this: on
EleutherAI/pythia-2.8b many step branches, step0 among them, were reported to serve the final weights
(https://github.com/EleutherAI/pythia/issues/205), and on pythia-12b single shards of two steps to be those of
the last one (issue 206). A curve over training, or step0 as the untrained control, would then silently be the
trained model.

The hub lists a SHA-256 for every weight file of every revision. Two revisions that share one are reported,
and refused as the steps they claim to be unless the user allows it with a reason; `main` claims no step.
Sharing one shard of several counts as well: no step of training leaves a shard as it was.

Pitfalls: the same tensors under another header or in other shards have other hashes, so `unique` means that
no file is shared, not that the weights differ. The last step and `main` are the same on purpose in most
repositories: say so in the list of allowed revisions. A revision without safetensors is refused, since its
weights cannot be loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import pyarrow

from counterprobe import checkpoints, checksum
from counterprobe.checkpoints import PATIENCE, HubFile, HubRevision, Patience, RevisionMissing
from counterprobe.progress import UserError, logger

COLUMNS = ("repo", "revision", "commit", "weights_sha256", "bytes", "same_as", "allowed", "reason", "verdict")
# One short request a revision; the hub limits requests, not connections.
CONNECTIONS = 8
# Enough names to see the pattern in one line of an error; the table has all.
NAMES_SHOWN = 8


def audit(
    repo: str,
    revisions: Sequence[str],
    *,
    allow: Mapping[str, str] | None = None,
    reference: str = "main",
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> pandas.DataFrame:
    """One row for each of `revisions`, in their order, with the columns of `COLUMNS`.

    `bytes` and `weights_sha256` are of the safetensors weights (the file's own hash, or a hash over those of
    the shards). `same_as` names the other revisions, `reference` included, that share all of these files, or,
    with the file in brackets, one of them. `verdict` is `reference`, `unique`, `allowed`, or what keeps the
    revision from being used: `refused` (shared weights), `missing` (no such revision), `no safetensors`.
    `allow` maps revisions to reasons.

    Raises UserError for an empty reason and where the hub cannot be read. Nothing is fetched or written;
    offline, the cache is read instead of the hub.
    """
    allow = allow or {}
    for revision, reason in allow.items():
        if not str(reason).strip():
            raise UserError(f"{repo}: revision {revision} is allowed without a reason; write why its weights are right")

    def read(revision: str) -> HubRevision | None:
        try:
            return checkpoints.list_revision(repo, revision, endpoint=endpoint, cache_dir=cache_dir, patience=patience)
        except RevisionMissing:
            return None

    # The reference first, so that `same_as` begins with it.
    names = tuple(dict.fromkeys((reference, *revisions)))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        listed = dict(zip(names, pool.map(read, names), strict=True))
    if listed[reference] is None:
        logger("revision_audit").warning("%s: has no %s to compare with, only its other revisions", repo, reference)
    weights = {name: _weights(revision) for name, revision in listed.items()}
    rows = [_row(repo, name, listed[name], weights, allow, reference) for name in dict.fromkeys(revisions)]
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype({"bytes": "int64", "allowed": "bool"})


def refuse(table: pandas.DataFrame) -> None:
    """Raise UserError if a revision of an audit cannot be used as what its name says."""
    for verdict, problem, cure in (
        ("missing", "not on the hub", "leave them out of `revisions`"),
        ("no safetensors", "without safetensors weights", "leave them out, or convert them offline"),
        ("refused", "with weights of another revision", "leave them out, or allow them with a reason (models.*.allow)"),
    ):
        rows = table[table["verdict"] == verdict]
        if len(rows) == 0:
            continue
        shown = [
            f"{row.revision} (as {_shorten(row.same_as.split(', '), 1)})" if row.same_as else row.revision
            for row in rows.itertuples()
        ]
        repo, names = rows["repo"].iloc[0], _shorten(shown, NAMES_SHOWN)
        raise UserError(f"{repo}: {len(rows)} of {len(table)} revisions {problem}: {names}; {cure}")


def gather(paths: Iterable[str | Path]) -> pandas.DataFrame:
    """Audits that are named MODEL.parquet in one frame with a column `model` in front: models sorted, revisions in the
    order of their audit. UserError names a damaged file."""
    parts = []
    for path in sorted(map(Path, paths)):
        part = checksum.read_parquet(path).to_pandas()
        part.insert(0, "model", path.name.removesuffix(".parquet"))
        parts.append(part)
    return pandas.concat(parts, ignore_index=True)


def to_parquet(table: pandas.DataFrame) -> bytes:
    """Parquet with its checksum; equal tables give equal bytes."""
    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    # from_pandas adds pandas' version as metadata.
    return checksum.parquet(arrow.replace_schema_metadata(None))


def _row(
    repo: str,
    name: str,
    revision: HubRevision | None,
    weights: Mapping[str, tuple[HubFile, ...]],
    allow: Mapping[str, str],
    reference: str,
) -> tuple[str, str, str, str, int, str, bool, str, str]:
    if revision is None:
        return (repo, name, "", "", 0, "", False, "the repository has no such revision", "missing")
    own = weights[name]
    if not own:
        return (repo, name, revision.commit, "", 0, "", False, "no safetensors weights", "no safetensors")
    same_as = ", ".join(
        label for other, files in weights.items() if other != name and (label := _shared(own, other, files))
    )
    identity = (own[0].sha256 if len(own) == 1 else None) or _digest(own)
    size = sum(file.size for file in own)
    allowed = name in allow
    if name == reference:
        verdict, reason = "reference", ""
    elif not same_as:
        verdict, reason = "unique", ""
    elif allowed:
        verdict, reason = "allowed", str(allow[name])
    else:
        verdict, reason = "refused", f"weights of {same_as}"
    return (repo, name, revision.commit, identity, size, same_as, allowed, reason, verdict)


def _weights(revision: HubRevision | None) -> tuple[HubFile, ...]:
    if revision is None:
        return ()
    files = {file.path: file for file in revision.files}
    return tuple(files[name] for name in checkpoints.weight_names(files))


def _shared(own: tuple[HubFile, ...], other: str, files: tuple[HubFile, ...]) -> str:
    """`other` if it has all of one's own files, `other (file)` if it has one of several, else nothing."""
    theirs = {_hash(file) for file in files}
    shared = [file for file in own if _hash(file) in theirs]
    if len(shared) == len(own):
        return other
    return f"{other} ({shared[0].path})" if shared else ""


def _hash(file: HubFile) -> str:
    # Weights small enough to be kept in git itself have git's checksum only.
    return file.sha256 or file.git_oid or file.path


def _digest(files: tuple[HubFile, ...]) -> str:
    return hashlib.sha256("".join(f"{file.path} {_hash(file)}\n" for file in files).encode()).hexdigest()


def _shorten(names: Sequence[str], shown: int) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
