"""Checkpoints from a model hub, a local folder or our own training, each a folder of verified files.

A checkpoint is a folder in the layout transformers writes: `config.json`, a tokenizer, and weights as
`model.safetensors` or as shards named by `model.safetensors.index.json`. Pickles are never fetched and never
read. The manifest of a checkpoint has the source, size and SHA-256 of every file, and for a hub the
repository, the revision and the commit it stood for, but no path into the cache; for the other two sources
the folder as it was given. `open_checkpoint` is the way back from a manifest to a folder, and checks every
file again.

huggingface_hub (2.4; https://huggingface.co/docs/huggingface_hub/guides/download) does all the fetching, into
its own cache (HF_HOME) and from its own address (HF_ENDPOINT, read when it is first imported). Around it
stands what it leaves to the caller, found by breaking each connection on purpose:

- a connection that is reset, or a 503, ends a download at once: we ask again, and wait as long as the hub
  asks for;
- a file with a flipped byte is accepted, and one truncated later on disk is never looked at again: we compare
  every file with the checksum in the revision's listing (SHA-256 for large files, git's blob SHA-1 for the
  others), and one that differs is deleted and fetched anew;
- a download that was killed leaves `<blob>.<nonce>.incomplete` for ever: we delete those whose lock nobody
  holds;
- asking for the tree of a revision has no time limit: we ask for the revision with its checksums, which has
  one.

An interrupted file starts again; files that were finished are not asked for again. Two processes that want
one file fetch it once, for the library locks each blob.

Pitfalls: a commit is fixed, a branch is not (`check_moved`). A hash says that a file is what the hub lists,
not that the hub lists the right file: see `revision_audit`. The lock relies on flock; where a file system
only pretends to have it, the cost is a download made twice, never a wrong file.
"""

from __future__ import annotations

import email.utils
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import filelock
import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers

from counterprobe import manifest, progress
from counterprobe.progress import UserError
from counterprobe.spec import canonical, digest

Result = TypeVar("Result")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# A tokenizer is one of these sets; the optional files go along where they exist.
TOKENIZERS = (
    frozenset({"tokenizer.json"}),
    frozenset({"tokenizer.model"}),
    frozenset({"vocab.json", "merges.txt"}),
    frozenset({"vocab.txt"}),
)
OPTIONAL = frozenset(
    {"generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
).union(*TOKENIZERS)

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What the library raises when a request fails. RuntimeError is hf_xet's word for a failed transfer, and
# httpx2's for a client that another thread has closed; ValueError and KeyError come of answers no hub gives.
FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    XetDownloadError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
)
# A file that arrives wrong twice is wrong at the source, or something rewrites it on the way.
FETCHES_PER_FILE = 2


class RevisionMissing(UserError):
    """The repository has no such revision."""


@dataclass(frozen=True)
class Patience:
    """How often to ask again after a passing failure, and how long to wait in between (seconds, doubling)."""

    attempts: int = 6
    first_wait: float = 1.0
    # The hub counts requests over windows of five minutes, and says how much of one is left.
    longest_wait: float = 600.0


PATIENCE = Patience()


@dataclass(frozen=True)
class HubFile:
    """A file of a revision: size in bytes, SHA-256 if it is large, git blob SHA-1 of what git keeps."""

    path: str
    size: int
    sha256: str | None
    git_oid: str | None


@dataclass(frozen=True)
class HubRevision:
    repo: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def label(self) -> str:
        offline = " in the Hugging Face cache (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        return f"{self.repo} at {self.revision}{offline}"


def list_revision(
    repo: str,
    revision: str,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> HubRevision:
    """The commit and the files of a revision, from the hub's metadata alone: nothing is fetched or written.

    Offline (HF_HUB_OFFLINE=1) the cache is read instead: the commit the revision last stood for there and the
    files it holds, each blob being named by its checksum.

    Raises RevisionMissing where the repository has no such revision, UserError for everything else a person
    can cure.
    """
    label = f"{repo} at {revision}"
    if constants.is_offline_mode():
        return _cached_revision(repo, revision, cache_dir)
    api = HfApi(endpoint=endpoint)
    # A time limit is what `list_repo_tree` lacks: a hub that stops answering would hold it for ever.
    ask = functools.partial(
        api.model_info, repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    info = _patiently(label, ask, patience)
    if not info.sha:
        raise UserError(f"{label}: the answer names no commit; check that HF_ENDPOINT is the address of a model hub")
    listed = {entry.rfilename: entry for entry in info.siblings or ()}
    if not listed or any(entry.size is None or entry.blob_id is None for entry in listed.values()):
        # Some mirrors leave checksums out of this answer but have them in the tree.
        ask = functools.partial(api.list_repo_tree, repo, recursive=True, revision=info.sha)
        tree = _patiently(label, lambda: list(ask()), patience)
        listed = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = tuple(
        HubFile(path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for path, entry in sorted(listed.items())
    )
    return HubRevision(repo, revision, info.sha, files)


def resolve_hub(
    repo: str,
    revision: str,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> HubRevision:
    """`list_revision`, and note in the cache which commit it found, so that it is known offline."""
    resolved = list_revision(repo, revision, endpoint=endpoint, cache_dir=cache_dir, patience=patience)
    if resolved.commit == revision:
        return resolved
    reference = _storage(repo, cache_dir) / "refs" / revision
    if not reference.is_file() or reference.read_text() != resolved.commit:
        try:
            with manifest.atomic(reference) as temporary:
                temporary.write_text(resolved.commit)
        except OSError as error:
            # A cache that is shared and read-only still serves what it holds.
            progress.logger("checkpoints").warning("%s: cannot note its commit (%s)", resolved.label, error.strerror)
    return resolved


def download(
    revision: HubRevision,
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Fetch what a model needs of a revision and verify every file; return the snapshot folder.

    Only the configuration, the tokenizer and safetensors weights are fetched. Files that are in the cache and
    right are not asked for again; offline all of them have to be.

    Raises UserError for a revision without safetensors weights, configuration or tokenizer, a shard the index
    names and the hub lacks, a file that arrives wrong twice, a full disk, or a hub that keeps failing. What
    was finished stays.
    """
    listed = {file.path: file for file in revision.files}
    snapshot = _snapshot(revision.repo, revision.commit, cache_dir)
    small = _small_files(listed, revision.label)
    if not constants.is_offline_mode():
        remove_stale(revision.repo, cache_dir=cache_dir)
    fetch = functools.partial(_fetch, revision, endpoint=endpoint, cache_dir=cache_dir, patience=patience)
    for name in small:
        fetch(listed[name])
    weights = _weight_files(listed, snapshot, revision.label)
    _check_room(revision, [listed[name] for name in weights], cache_dir)
    for name in weights:
        fetch(listed[name])
    return snapshot


def fetch(
    revision: HubRevision,
    names: Iterable[str],
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Fetch these files of a revision, whatever they are, and verify each; return the snapshot folder.

    `names` are among the revision's. Raises UserError as `download` does.
    """
    listed = {file.path: file for file in revision.files}
    wanted = [listed[name] for name in names]
    if not constants.is_offline_mode():
        remove_stale(revision.repo, cache_dir=cache_dir)
    _check_room(revision, wanted, cache_dir)
    for file in wanted:
        _fetch(revision, file, endpoint=endpoint, cache_dir=cache_dir, patience=patience)
    return _snapshot(revision.repo, revision.commit, cache_dir)


def describe(folder: str | Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, as manifests list them. UserError for safetensors that were cut short."""
    for name in names:
        if name.endswith(".safetensors"):
            _check_safetensors(Path(folder) / name)
    return _describe(Path(folder), names, {})


def hub_content(revision: HubRevision, snapshot: str | Path) -> dict[str, Any]:
    """Manifest content of a downloaded revision: repository, revision, commit and files."""
    listed = {file.path: file for file in revision.files}
    names = (*_small_files(listed, revision.label), *_weight_files(listed, Path(snapshot), revision.label))
    known = {name: listed[name].sha256 for name in names if listed[name].sha256}
    return {
        "source": "hub",
        "repo": revision.repo,
        "revision": revision.revision,
        "commit": revision.commit,
        "files": _describe(Path(snapshot), names, known),
    }


def write_resolved(revision: HubRevision) -> dict[str, Any]:
    """A resolved revision as JSON with its checksum, for a file between the job that resolves and the job that fetches."""
    document = asdict(revision)
    return document | {"checksum": digest(canonical(document))}


def read_resolved(path: str | Path) -> HubRevision:
    """Read back what `write_resolved` gave. Raises UserError for a file that is something else, or was damaged."""
    document = _read_json(Path(path))
    try:
        if document.pop("checksum") != digest(canonical(document)):
            raise UserError(f"{path}: its text does not match its checksum; delete it and run again")
        files = tuple(HubFile(**file) for file in document.pop("files"))
        return HubRevision(**document, files=files)
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path}: not a resolved revision; delete it and run again") from None


def check_moved(previous: Mapping[str, Any] | None, resolved: HubRevision) -> None:
    """Raise UserError if a manifest's content says that this revision stood for another commit.

    `previous` is the content of the manifest written before, or None. One of another repository or revision
    says nothing.
    """
    asked = {"repo": resolved.repo, "revision": resolved.revision}
    if previous is None or any(previous.get(key) != value for key, value in asked.items()):
        return
    if previous["commit"] != resolved.commit:
        raise UserError(
            f"{resolved.label}: was commit {previous['commit']} and is now {resolved.commit}; to keep the "
            "old weights put that commit in `revisions`, to take the new ones delete this revision's manifest"
        )


def folder_content(folder: str | Path, *, source: str) -> dict[str, Any]:
    """Manifest content of a folder in Hugging Face layout: where it is, and the files a model needs of it.

    `source` is `directory` or `train`. The folder is noted as it is given, so a path relative to the checkout
    stays one. A truncated weight file is found by its header, which says how long the file is: nothing else
    vouches for a folder of one's own.

    Raises UserError for a folder that is missing or lacks configuration, tokenizer, safetensors weights or a
    shard.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the path of a model in Hugging Face layout")
    present = {entry.name for entry in root.iterdir() if entry.is_file()}
    names = _small_files(present, str(folder))
    _read_json(root / CONFIG)
    weights = _weight_files(present, root, str(folder))
    for name in weights:
        _check_safetensors(root / name)
    return {"source": source, "folder": str(folder), "files": _describe(root, (*names, *weights), {})}


def trained_content(training: str | Path, revision: str) -> dict[str, Any]:
    """Manifest content of one revision that a training job wrote, after comparing its files with that job's manifest.

    Raises UserError naming the first file that is missing or not as it was written.
    """
    content = folder_content(Path(training).parent / revision, source="train")
    written = manifest.read(training)["content"]["files"]
    for name, entry in content["files"].items():
        if written.get(f"{revision}/{name}") != entry:
            raise UserError(
                f"{Path(training).parent / revision / name}: not the file that training wrote; delete the folder of "
                "this model and run again"
            )
    return content


def open_checkpoint(path: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """The folder that a checkpoint's manifest describes, after comparing every file with it.

    For a hub that is the snapshot in Hugging Face's cache; else the folder the manifest was made from.

    Raises UserError naming the first file that is missing or differs in size or SHA-256.
    """
    content = manifest.read(path)["content"]
    if content["source"] == "hub":
        root = _snapshot(content["repo"], content["commit"], cache_dir)
        shown = f"{content['repo']} at {content['revision']}: "
        advice = f"delete {path} and run again with a network, or point HF_HOME to the cache that has it"
    else:
        root = Path(content["folder"]).expanduser()
        shown = f"{root}/"
        advice = f"restore the file, or delete {path} and run again if the change was meant"
    for name, entry in content["files"].items():
        file = root / name
        if not file.is_file():
            raise UserError(f"{shown}{name} is missing; {advice}")
        size = file.stat().st_size
        if size != entry["size"]:
            raise UserError(f"{shown}{name} has {size:,} bytes where the manifest says {entry['size']:,}; {advice}")
    for name, entry in content["files"].items():
        if manifest.sha256_file(root / name) != entry["sha256"]:
            raise UserError(f"{shown}{name} is not the file the manifest describes (sha256); {advice}")
    return root


def remove_stale(repo: str, *, cache_dir: str | Path | None = None) -> int:
    """Delete the partial files that dead downloads of a repository left in the cache; return how many.

    A live download holds the lock of its blob, so a partial file whose lock is free belongs to nobody.
    """
    removed = 0
    for partial in sorted((_storage(repo, cache_dir) / "blobs").glob("*.incomplete")):
        try:
            with _blob_lock(repo, partial.name.split(".")[0], cache_dir, timeout=0.0):
                partial.unlink(missing_ok=True)
                removed += 1
        except filelock.Timeout:
            continue
        except OSError as error:
            progress.logger("checkpoints").warning("%s: cannot remove a partial file (%s)", repo, error.strerror)
    return removed


def weight_names(names: Collection[str]) -> tuple[str, ...]:
    """The safetensors weights among file names, as far as names tell: the single file, else the shards."""
    if WEIGHTS in names:
        return (WEIGHTS,)
    return tuple(sorted(name for name in names if SHARD.fullmatch(name)))


def _small_files(names: Collection[str], label: str) -> tuple[str, ...]:
    """Names of the configuration, the tokenizer and the shard index; UserError where one is missing."""
    if CONFIG not in names:
        raise UserError(f"{label}: no {CONFIG}; check that it is a transformers model")
    if WEIGHTS not in names and INDEX not in names:
        pickles = sorted(name for name in names if name.startswith("pytorch_model"))
        if pickles:
            raise UserError(
                f"{label}: has its weights as a pickle only ({pickles[0]}), and pickles are never loaded; "
                "convert it once, where you trust it, with AutoModelForCausalLM.from_pretrained(...)"
                ".save_pretrained(FOLDER) and the same for AutoTokenizer, then use `source: directory`"
            )
        raise UserError(f"{label}: no {WEIGHTS} and no {INDEX}; weights must be safetensors")
    if not any(files <= set(names) for files in TOKENIZERS):
        raise UserError(f"{label}: no tokenizer (tokenizer.json, or vocab.json with merges.txt); take a model with one")
    index = () if WEIGHTS in names else (INDEX,)
    return (CONFIG, *sorted(OPTIONAL & set(names)), *index)


def _weight_files(names: Collection[str], folder: Path, label: str) -> tuple[str, ...]:
    """Names of the weight files; the index lies in `folder` already. UserError for a shard not in `names`."""
    if WEIGHTS in names:
        return (WEIGHTS,)
    index = _read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    named = sorted(set(shards.values()), key=str) if isinstance(shards, dict) else []
    if not named or not all(isinstance(name, str) for name in named):
        raise UserError(f"{label}: {INDEX} maps no tensor to a file; the upload is broken")
    for name in named:
        if name not in names or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{label}: {INDEX} names {name}, which is not there; fetch or upload it")
    return tuple(named)


def _fetch(
    revision: HubRevision,
    file: HubFile,
    *,
    endpoint: str | None,
    cache_dir: str | Path | None,
    patience: Patience,
) -> None:
    label = f"{revision.label}: {file.path}"
    pointer = _snapshot(revision.repo, revision.commit, cache_dir) / file.path
    ask = functools.partial(
        hf_hub_download,
        revision.repo,
        file.path,
        revision=revision.commit,
        endpoint=endpoint,
        cache_dir=cache_dir,
        etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    log = progress.logger("checkpoints")
    fetches = 0
    while not (pointer.is_file() and _is_right(pointer, file)):
        broken = pointer.is_file()
        if constants.is_offline_mode():
            what = "does not have the checksum listed for it" if broken else "is missing"
            raise UserError(f"{label} {what}; unset HF_HUB_OFFLINE, or fetch the file where there is a network")
        if broken:
            log.warning("%s: does not have the checksum listed for it, fetching it again", label)
            _discard(revision.repo, pointer, file, cache_dir)
        if fetches == FETCHES_PER_FILE:
            raise UserError(
                f"{label}: arrived {fetches} times with another checksum than the hub lists, and is not "
                "kept; try again later, or another HF_ENDPOINT"
            )
        log.info("%s: fetching %.1f MB", label, file.size / 1e6)
        _patiently(label, ask, patience)
        fetches += 1


def _is_right(path: Path, file: HubFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return manifest.sha256_file(path) == file.sha256
    # Without any checksum (a cache whose links were replaced by copies, offline) the size is all there is.
    return file.git_oid is None or _git_oid(path) == file.git_oid


def _git_oid(path: Path) -> str:
    """The name git gives to a file's content: SHA-1 of `blob <size>`, a zero byte and the content."""
    oid = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            oid.update(chunk)
    return oid.hexdigest()


def _discard(repo: str, pointer: Path, file: HubFile, cache_dir: str | Path | None) -> None:
    """Delete a wrong file from the cache, unless another process has just replaced it by the right one."""
    linked = os.readlink(pointer).rpartition("/")[2] if pointer.is_symlink() else None
    name = linked or file.sha256 or file.git_oid or file.path
    with _blob_lock(repo, name, cache_dir):
        if pointer.is_file() and _is_right(pointer, file):
            return
        # A blob may be a link itself, into the store that repositories share.
        pointer.resolve().unlink(missing_ok=True)
        (_storage(repo, cache_dir) / "blobs" / name).unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)


def _blob_lock(repo: str, blob: str, cache_dir: str | Path | None, *, timeout: float = -1.0) -> filelock.BaseFileLock:
    """The lock that huggingface_hub holds while it fetches a blob."""
    folder = _cache(cache_dir) / ".locks" / _folder_name(repo)
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / f"{blob}.lock", timeout=timeout, mode=0o664)


def _check_room(revision: HubRevision, files: Collection[HubFile], cache_dir: str | Path | None) -> None:
    blobs = _storage(revision.repo, cache_dir) / "blobs"
    needed = sum(file.size for file in files if not (blobs / str(file.sha256 or file.git_oid)).exists())
    if constants.is_offline_mode() or not needed:
        return
    place = next(folder for folder in (blobs, *blobs.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{revision.label}: {needed / 1e9:.2f} GB to fetch and {free / 1e9:.2f} GB free on the disk "
            "of the Hugging Face cache; free some, or point HF_HOME to another disk, and run again"
        )


def _describe(folder: Path, names: Collection[str], known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "size": (folder / name).stat().st_size,
            "sha256": known.get(name) or manifest.sha256_file(folder / name),
        }
        for name in sorted(names)
    }


def _check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header implies.

    Format: 8 bytes n, little endian; n bytes of JSON with the offsets of each tensor; the data
    (https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        header = stream.read(length) if length <= size - 8 else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise UserError(f"{path}: not a safetensors file, or cut short; copy it again") from None
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes where its header says {expected:,}; copy it again")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch or copy it again") from None


def _cached_revision(repo: str, revision: str, cache_dir: str | Path | None) -> HubRevision:
    """What the cache knows of a revision."""
    storage = _storage(repo, cache_dir)
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = storage / "snapshots" / commit
    if not snapshot.is_dir():
        raise RevisionMissing(
            f"{repo} at {revision}: not in the Hugging Face cache, and HF_HUB_OFFLINE is set; unset it, or "
            "point HF_HOME to the cache that has it"
        )
    return HubRevision(repo, revision, commit, tuple(_cached_files(snapshot)))


def _cached_files(snapshot: Path) -> Iterator[HubFile]:
    for path in sorted(snapshot.rglob("*")):
        if not path.is_file():
            continue
        blob = os.readlink(path).rpartition("/")[2] if path.is_symlink() else ""
        yield HubFile(
            path.relative_to(snapshot).as_posix(),
            path.stat().st_size,
            blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None,
            blob if re.fullmatch(r"[0-9a-f]{40}", blob) else None,
        )


def _cache(cache_dir: str | Path | None) -> Path:
    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()


def _storage(repo: str, cache_dir: str | Path | None) -> Path:
    return _cache(cache_dir) / _folder_name(repo)


def _folder_name(repo: str) -> str:
    try:
        return repo_folder_name(repo_id=repo, repo_type="model")
    except HFValidationError as error:
        raise UserError(f"{repo}: {_remedy(error)}") from error


def _snapshot(repo: str, commit: str, cache_dir: str | Path | None) -> Path:
    return _storage(repo, cache_dir) / "snapshots" / commit


def _patiently(label: str, ask: Callable[[], Result], patience: Patience) -> Result:
    """Call the hub until it answers; UserError at once for what waiting cannot cure, else in the end."""
    for attempt in range(1, patience.attempts + 1):
        try:
            return ask()
        except FAILURES as error:
            cause = _root_cause(error)
            remedy = _remedy(cause)
            if remedy is not None:
                kind = RevisionMissing if isinstance(cause, RevisionNotFoundError) else UserError
                raise kind(f"{label}: {remedy}") from error
            reason = f"{label}: {_one_line(cause)}"
            if attempt == patience.attempts:
                advice = "check the network and run again: finished files are kept"
                raise UserError(f"{reason}, {attempt} times; {advice}") from error
            wait = max(patience.first_wait * 2 ** (attempt - 1), _asked_wait(cause))
            if wait > patience.longest_wait:
                advice = f"the hub asks to wait {wait:,.0f} seconds: run again after that"
                raise UserError(f"{reason}; {advice}") from error
        log = progress.logger("checkpoints")
        log.warning("%s; attempt %d of %d in %.0f s", reason, attempt + 1, patience.attempts, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _root_cause(error: Exception) -> Exception:
    """huggingface_hub reports a failed request for a file it has not cached as a missing local file."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _remedy(error: Exception) -> str | None:
    """What to do about a failure that would only repeat itself; None for one that may pass."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it, or fetch the file where there is a network"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; check `revisions`"
    if isinstance(error, GatedRepoError):
        return "access is restricted; accept the model's terms on its page and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one; check the name, or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in TRANSIENT_STATUS:
            return None
        if status == 401:
            return "the hub wants to know who asks (401); set HF_TOKEN, or check the one that is set"
        return f"the hub answered {status}; check the name and the revision"
    if isinstance(error, HFValidationError):
        return f"not a repository's name ({_one_line(error)}); it looks like organisation/model"
    if isinstance(error, (FileMetadataError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects)):
        return f"{_one_line(error)}; check that HF_ENDPOINT is the address of a model hub"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return "no room on the disk of the Hugging Face cache; free some, or point HF_HOME to another disk"
    if isinstance(error, OSError) and error.errno in NO_RIGHT:
        return f"the Hugging Face cache cannot be written ({error.strerror}); point HF_HOME to your own"
    if isinstance(error, (ValueError, KeyError)):
        return f"not the answer of a model hub ({_one_line(error)}); check HF_ENDPOINT, or the network's login"
    return None


def _asked_wait(error: Exception) -> float:
    """Seconds the hub asks to wait: by `Retry-After`, a number or a date, or until a rate limit's reset."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def _one_line(error: Exception) -> str:
    """The first line of a message, for those of the hub run over many."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text.rstrip(".") or type(error).__name__
