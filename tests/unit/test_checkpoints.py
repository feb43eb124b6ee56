"""Checkpoints against a hub that fails on purpose, and against folders that are not what they seem.

huggingface_hub runs for real; only its time limits, its pauses and its chunk size are made small.
"""

import contextlib
import datetime
import email.utils
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopback_hub import Hub

from counterprobe import checkpoints, manifest
from counterprobe.checkpoints import HubRevision, Patience, RevisionMissing
from counterprobe.progress import UserError

REPO = "org/tiny"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_model(folder, seed=0, size=40_000, shards=False):
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    tensors = {name: draws.standard_normal(size).astype(np.float32) for name in ("a", "b")}
    if shards:
        for name, file in zip(tensors, SHARDS, strict=True):
            save_file({name: tensors[name]}, folder / file)
        index = {"metadata": {}, "weight_map": dict(zip(tensors, SHARDS, strict=True))}
        (folder / checkpoints.INDEX).write_text(json.dumps(index))
    else:
        save_file(tensors, folder / checkpoints.WEIGHTS)
    (folder / "config.json").write_text('{"model_type": "gpt_neox"}\n')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    (folder / "tokenizer_config.json").write_text("{}\n")
    return folder


@pytest.fixture
def root(tmp_path):
    write_model(tmp_path / "hub" / REPO / "main")
    return tmp_path / "hub"


@pytest.fixture
def hub(root):
    with Hub(root) as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Pauses asked for, as (module, seconds); each takes 2 ms at most. Time limits are small, too."""
    asked = []
    sleep = time.sleep

    def short(seconds):
        asked.append((sys._getframe(1).f_globals["__name__"].partition(".")[0], seconds))
        sleep(min(seconds, 0.002))

    monkeypatch.setattr(time, "sleep", short)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 32_768)
    return asked


def ours(waits):
    return [seconds for module, seconds in waits if module == "counterprobe"]


def resolve(hub, cache, revision="main", **settings):
    return checkpoints.resolve_hub(REPO, revision, endpoint=hub.endpoint, cache_dir=cache, **settings)


def fetch(hub, cache, revision="main", **settings):
    found = resolve(hub, cache, revision, **settings)
    return checkpoints.download(found, endpoint=hub.endpoint, cache_dir=cache, **settings)


def write_manifest(folder, content):
    manifest.write(folder / "manifest.json", content, {})
    return folder / "manifest.json"


def go_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def same(snapshot, source):
    return all((snapshot / path.name).read_bytes() == path.read_bytes() for path in Path(source).iterdir())


def leftovers(cache):
    return [path.name for path in cache.rglob("*") if path.name.endswith((".incomplete", ".tmp"))]


# What is fetched, and what is written down


def test_only_what_a_model_needs_is_fetched(hub, root, cache):
    folder = root / REPO / "main"
    for name in (
        "README.md",
        "pytorch_model.bin",
        "tf_model.h5",
        "onnx/model.safetensors",
        "modeling_own.py",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)
    snapshot = fetch(hub, cache)
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert all((snapshot / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_manifest_content_identifies_the_files_and_not_the_machine(hub, root, cache, tmp_path):
    resolved = resolve(hub, cache)
    snapshot = checkpoints.download(resolved, endpoint=hub.endpoint, cache_dir=cache)
    content = checkpoints.hub_content(resolved, snapshot)
    assert content == {
        "source": "hub",
        "repo": REPO,
        "revision": "main",
        "commit": hub.commit(REPO, "main"),
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in (root / REPO / "main").iterdir()
        },
    }
    assert str(tmp_path) not in json.dumps(content)
    assert hub.endpoint not in json.dumps(content)
    assert checkpoints.open_checkpoint(write_manifest(tmp_path, content), cache_dir=cache) == snapshot


def test_a_resolved_revision_passes_through_a_file(hub, cache, tmp_path):
    resolved = resolve(hub, cache)
    path = tmp_path / "resolved.json"
    path.write_text(json.dumps(checkpoints.write_resolved(resolved)))
    assert checkpoints.read_resolved(path) == resolved
    path.write_text(path.read_text().replace(resolved.commit[:6], "000000"))
    assert "does not match its checksum" in error_of(checkpoints.read_resolved, path)
    for wrong in ("[]", "{}", '{"files": [{}]}', '{"files": []}', '{"files": [], "repo": '):
        path.write_text(wrong)
        assert str(path) in error_of(checkpoints.read_resolved, path)


def test_a_finished_file_is_never_asked_for_again(hub, cache):
    fetch(hub, cache)
    asked = hub.count(where="/resolve/")
    assert fetch(hub, cache).is_dir()
    assert hub.count(where="/resolve/") == asked


def test_revisions_share_the_files_they_have_in_common(hub, root, cache):
    write_model(root / REPO / "step1", seed=1)
    fetch(hub, cache)
    fetch(hub, cache, "step1")
    assert hub.count("GET", "/resolve/", 200) == 4 + 1


def test_shards(hub, root, cache):
    source = write_model(root / REPO / "big", shards=True)
    snapshot = fetch(hub, cache, "big")
    assert same(snapshot, source)
    content = checkpoints.hub_content(resolve(hub, cache, "big"), snapshot)
    assert set(SHARDS) | {checkpoints.INDEX} < set(content["files"])


def test_a_mirror_without_checksums_in_its_answer_still_has_the_tree(root, cache):
    with Hub(root, blobs=False) as mirror, Hub(root) as hub:
        assert resolve(mirror, cache) == resolve(hub, cache)
        assert mirror.count(where="/tree/") == 1
        assert hub.count(where="/tree/") == 0


def test_a_commit_is_a_revision(hub, root, cache):
    commit = hub.commit(REPO, "main")
    assert same(fetch(hub, cache, commit), root / REPO / "main")
    assert not (cache / "models--org--tiny" / "refs").exists()


# Faults that pass: the right bytes in the end

WEIGHTS = "/model.safetensors"
PASSING = {
    "cut mid-file": {"kind": "cut", "where": WEIGHTS, "after": 100_000},
    "cut before the first byte": {"kind": "cut", "where": WEIGHTS},
    "cut nine times": {"kind": "cut", "where": WEIGHTS, "after": 1000, "times": 9},
    "reset": {"kind": "reset", "where": WEIGHTS, "after": 100_000},
    "reset three times": {"kind": "reset", "where": WEIGHTS, "after": 1000, "times": 3},
    "stalled": {"kind": "stall", "where": WEIGHTS, "after": 100_000},
    "stalled listing": {"kind": "stall", "where": "/api/models", "after": 10},
    "cut listing": {"kind": "cut", "where": "/api/models", "after": 10},
    "one bit flipped": {"kind": "flip", "where": WEIGHTS, "after": 70_000},
    "one bit of a small file flipped": {"kind": "flip", "where": "config.json", "after": 3},
    "a byte short": {"kind": "length", "where": WEIGHTS, "change": -1},
    "a byte long": {"kind": "length", "where": WEIGHTS, "change": 1},
    "small file cut short": {"kind": "length", "where": "tokenizer.json", "change": -5},
    "503 on a file": {"kind": "status", "where": WEIGHTS, "status": 503},
    "503 on the listing": {"kind": "status", "where": "/api/models", "status": 503, "times": 3},
    "503 on a file's head": {"kind": "status", "where": WEIGHTS, "status": 503, "method": "HEAD"},
    "500 on a file": {"kind": "status", "where": WEIGHTS, "status": 500},
    "429 on a file": {"kind": "status", "where": WEIGHTS, "status": 429, "headers": {"Retry-After": "2"}},
    "429 on the listing": {
        "kind": "status",
        "where": "/api/models",
        "status": 429,
        "headers": {"Retry-After": "2"},
    },
}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("name", PASSING)
def test_survives(name, ranges, root, cache):
    with Hub(root, ranges=ranges) as hub:
        fault = hub.inject(**PASSING[name])
        snapshot = fetch(hub, cache)
    assert fault.hits == fault.times
    assert same(snapshot, root / REPO / "main")
    assert leftovers(cache) == []


def test_a_cut_file_goes_on_where_it_stopped_if_the_library_can(hub, cache):
    hub.inject("cut", WEIGHTS, after=200_000)
    fetch(hub, cache)
    assert [request.range for request in hub.requests if request.status == 206] == [f"bytes={6 * 32_768}-"]


def test_the_hub_says_how_long_to_wait(hub, cache, waits):
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    for headers in (
        {"Retry-After": "37"},
        {"Retry-After": email.utils.format_datetime(date, usegmt=True)},
        {"RateLimit": '"api";r=0;t=55', "Retry-After": "1"},
        {"Retry-After": "soon"},
    ):
        hub.inject("status", "/api/models", status=429, headers=headers)
    resolve(hub, cache)
    number, as_date, window, nonsense = ours(waits)
    assert (number, window) == (37, 55)
    assert as_date == pytest.approx(90, abs=3)
    assert nonsense == 8  # the fourth pause of 1, 2, 4, 8


def test_a_wait_nobody_would_sit_through_is_an_error_at_once(hub, cache, waits):
    hub.inject("status", "/api/models", status=429, headers={"Retry-After": "7200"}, times=None)
    with pytest.raises(UserError, match=r"org/tiny at main: .*429.*asks to wait 7,200 seconds"):
        resolve(hub, cache)
    assert ours(waits) == []


def test_pauses_double(hub, cache, waits):
    hub.inject("status", "/api/models", times=4)
    resolve(hub, cache, patience=Patience(attempts=5, first_wait=0.5))
    assert ours(waits) == [0.5, 1, 2, 4]


# Faults that stay: one clear line, and nothing that looks finished


def error_of(call, *arguments, **settings):
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["reset", "cut", "status"])
def test_a_hub_that_keeps_failing(kind, hub, root, cache):
    hub.inject(kind, WEIGHTS, after=1000, times=None)
    message = error_of(fetch, hub, cache, patience=Patience(attempts=2))
    assert message.startswith("org/tiny at main: model.safetensors: ")
    assert "2 times" in message
    assert leftovers(cache) == []
    hub.heal()
    before = hub.count("GET", "/config.json", 200)
    assert same(fetch(hub, cache), root / REPO / "main")
    assert hub.count("GET", "/config.json", 200) == before == 1


@pytest.mark.parametrize("where", [WEIGHTS, "config.json"])
def test_a_file_that_is_always_wrong_is_not_kept(where, hub, root, cache):
    hub.inject("flip", where, after=7, times=None)
    message = error_of(fetch, hub, cache)
    assert f"org/tiny at main: {where.strip('/')}: arrived 2 times with another checksum" in message
    assert hub.count("GET", where, 200) == 2
    assert not list(cache.rglob(where.strip("/")))
    source = (root / REPO / "main" / where.strip("/")).read_bytes()
    assert not any((cache / "models--org--tiny/blobs").glob(hashlib.sha256(source).hexdigest()))
    hub.heal()
    assert same(fetch(hub, cache), root / REPO / "main")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
        (404, {}, "the hub answered 404"),
        (401, {}, "HF_TOKEN"),
        (401, {"X-Error-Code": "RepoNotFound"}, "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept the model's terms"),
        (403, {}, "the hub answered 403"),
    ],
)
@pytest.mark.parametrize("where", ["/api/models", WEIGHTS])
def test_what_waiting_cannot_cure_is_said_at_once(where, status, headers, words, hub, cache, waits):
    for method in ("GET", "HEAD"):
        hub.inject("status", where, method=method, status=status, headers=headers, times=None)
    assert words in error_of(fetch, hub, cache)
    assert ours(waits) == []


def test_a_missing_revision_has_its_own_error(hub, cache):
    with pytest.raises(RevisionMissing, match=r"org/tiny at step7: .*check `revisions`"):
        resolve(hub, cache, "step7")


@pytest.mark.parametrize("repo", ["a/b/c", "../../etc", "org/with space"])
def test_a_name_that_cannot_be_one(repo, hub, cache):
    assert "organisation/model" in error_of(
        checkpoints.resolve_hub, repo, "main", endpoint=hub.endpoint, cache_dir=cache
    )


def test_a_name_that_cannot_be_one_offline(cache, monkeypatch):
    go_offline(monkeypatch)
    assert "organisation/model" in error_of(checkpoints.resolve_hub, "a/b/c", "main", cache_dir=cache)


def test_the_wrong_address(cache, waits):
    def at(endpoint):
        return error_of(
            checkpoints.resolve_hub,
            REPO,
            "main",
            endpoint=endpoint,
            cache_dir=cache,
            patience=Patience(attempts=2),
        )

    assert "HF_ENDPOINT" in at("localhost.example/hub")
    assert "2 times" in at("http://127.0.0.1:9")


def test_an_answer_that_is_not_a_hubs(hub, cache, monkeypatch):
    hub.inject("redirect", "/revision/", location=f"{hub.endpoint}/org/tiny/resolve/main/tokenizer.json")
    assert "not the answer of a model hub" in error_of(resolve, hub, cache)
    hub.inject("redirect", "/revision/", location=f"{hub.endpoint}/org/tiny/resolve/main/model.safetensors")
    assert "not the answer of a model hub" in error_of(resolve, hub, cache)


def test_redirects(root, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "secret")
    with Hub(root) as storage, Hub(root, storage=storage.endpoint, token="secret") as hub:
        assert same(fetch(hub, cache), root / REPO / "main")
        assert {request.authorization for request in hub.requests} == {"Bearer secret"}
        elsewhere = [request.authorization for request in storage.requests]
    assert elsewhere == [None]


def test_a_redirect_to_wrong_bytes_is_noticed(root, cache, tmp_path):
    write_model(tmp_path / "other" / REPO / "main", seed=9)
    with Hub(tmp_path / "other") as storage, Hub(root, storage=storage.endpoint) as hub:
        assert "another checksum" in error_of(fetch, hub, cache)


def test_a_redirect_to_nowhere_or_in_a_circle(root, cache):
    with Hub(root, storage="http://127.0.0.1:9") as hub:
        assert "2 times" in error_of(fetch, hub, cache, patience=Patience(attempts=2))
    with Hub(root) as hub:
        for method in ("GET", "HEAD"):
            hub.inject("redirect", "config.json", location="config.json", method=method, times=None)
        assert "redirects" in error_of(fetch, hub, cache / "other")


def test_a_shard_the_index_names_is_missing(hub, root, cache):
    source = write_model(root / REPO / "big", shards=True)
    (source / SHARDS[1]).unlink()
    assert f"{checkpoints.INDEX} names {SHARDS[1]}, which is not there" in error_of(fetch, hub, cache, "big")
    assert hub.count("GET", SHARDS[0]) == 0


@pytest.mark.parametrize(
    "weight_map",
    [
        "{",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3, "b": "x"}}',
        '{"weight_map": {"a": "../x"}}',
        "[]",
    ],
)
def test_an_index_that_is_none(weight_map, hub, root, cache):
    source = write_model(root / REPO / "big", shards=True)
    (source / checkpoints.INDEX).write_text(weight_map)
    assert checkpoints.INDEX in error_of(fetch, hub, cache, "big")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_refused(pickle, hub, root, cache):
    folder = root / REPO / "main"
    (folder / checkpoints.WEIGHTS).rename(folder / pickle)
    message = error_of(fetch, hub, cache)
    assert f"pickle only ({pickle})" in message
    assert "save_pretrained" in message
    assert hub.count(where="/resolve/") == 0
    assert "pickle only" in error_of(described, folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", checkpoints.WEIGHTS])
def test_a_revision_that_lacks_something(name, hub, root, cache):
    (root / REPO / "main" / name).unlink()
    assert name in error_of(fetch, hub, cache)
    assert hub.count(where="/resolve/") == 0


# The commit of a branch


def test_a_moved_revision_names_both_commits(hub, root, cache):
    before = resolve(hub, cache)
    content = checkpoints.hub_content(before, checkpoints.download(before, endpoint=hub.endpoint, cache_dir=cache))
    checkpoints.check_moved(content, resolve(hub, cache))
    (root / REPO / "main" / "config.json").write_text('{"model_type": "gpt_neox", "note": "pushed"}')
    after = resolve(hub, cache)
    message = error_of(checkpoints.check_moved, content, after)
    assert before.commit in message
    assert after.commit in message
    checkpoints.check_moved(None, after)
    checkpoints.check_moved({**content, "repo": "org/other"}, after)
    checkpoints.check_moved({**content, "revision": "step1"}, after)


# Offline


def test_offline_with_a_complete_cache(hub, root, cache, monkeypatch):
    online = resolve(hub, cache)
    snapshot = checkpoints.download(online, endpoint=hub.endpoint, cache_dir=cache)
    asked = len(hub.requests)
    go_offline(monkeypatch)
    offline = resolve(hub, cache)
    assert checkpoints.download(offline, cache_dir=cache) == snapshot
    assert checkpoints.hub_content(offline, snapshot) == checkpoints.hub_content(online, snapshot)
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", checkpoints.INDEX, *SHARDS],
    ids=["config", "tokenizer", "index", "1", "2"],
)
def test_offline_with_an_incomplete_cache(name, hub, root, cache, monkeypatch):
    write_model(root / REPO / "big", shards=True)
    online = resolve(hub, cache, "big")
    snapshot = checkpoints.download(online, endpoint=hub.endpoint, cache_dir=cache)
    os.remove((snapshot / name).resolve())
    go_offline(monkeypatch)
    for known in (resolve(hub, cache, "big"), online):
        message = error_of(checkpoints.download, known, cache_dir=cache)
        assert name in message
        assert "HF_HUB_OFFLINE" in message


def test_offline_and_never_fetched(hub, cache, monkeypatch):
    go_offline(monkeypatch)
    assert "not in the Hugging Face cache" in error_of(resolve, hub, cache)
    assert len(hub.requests) == 0


def test_offline_with_copies_in_place_of_links(hub, root, cache, monkeypatch):
    fetch(hub, cache)
    copy = cache.with_name("copy")
    shutil.copytree(cache, copy, symlinks=False)
    go_offline(monkeypatch)
    assert same(fetch(hub, copy), root / REPO / "main")


# What happens to files on disk


@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_file_that_went_bad_on_disk_is_fetched_again(harm, hub, root, cache, tmp_path, monkeypatch):
    resolved = resolve(hub, cache)
    snapshot = checkpoints.download(resolved, endpoint=hub.endpoint, cache_dir=cache)
    written = write_manifest(tmp_path, checkpoints.hub_content(resolved, snapshot))
    blob = (snapshot / checkpoints.WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    if harm == "truncated":
        del data[-10:]
    else:
        data[1000] ^= 1
    blob.write_bytes(data)
    assert checkpoints.WEIGHTS in error_of(checkpoints.open_checkpoint, written, cache_dir=cache)
    with monkeypatch.context() as patch:
        go_offline(patch)
        assert "checksum" in error_of(checkpoints.download, resolved, cache_dir=cache)
    assert same(fetch(hub, cache), root / REPO / "main")
    assert hub.count("GET", WEIGHTS, 200) == 2
    assert hub.count("GET", "/config.json", 200) == 1


def test_a_link_without_its_file_is_repaired(hub, root, cache):
    snapshot = fetch(hub, cache)
    (snapshot / checkpoints.WEIGHTS).resolve().unlink()
    assert same(fetch(hub, cache), root / REPO / "main")


def test_a_cache_that_cannot_be_written(hub):
    place = Path("/sys/none")
    if not place.parent.is_dir():
        pytest.skip("no folder here that even root cannot write")
    assert "HF_HOME" in error_of(fetch, hub, place)


def test_partial_files_of_dead_downloads_go_and_those_of_live_ones_stay(cache):
    blobs = cache / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    dead, live = (blobs / f"{name * 64}.1a2b3c4d.incomplete" for name in "de")
    for partial in (dead, live):
        partial.write_bytes(b"half")
    locks = cache / ".locks" / "models--org--tiny"
    locks.mkdir(parents=True)
    with filelock.FileLock(locks / f"{'e' * 64}.lock"):
        assert checkpoints.remove_stale(REPO, cache_dir=cache) == 1
        assert list(blobs.iterdir()) == [live]
    assert checkpoints.remove_stale(REPO, cache_dir=cache) == 1
    assert checkpoints.remove_stale("org/never-seen", cache_dir=cache) == 0


@contextlib.contextmanager
def another_process(hub, cache):
    """A process that fetches the model, as a job of its own would."""
    code = (
        f"from counterprobe import checkpoints;print(checkpoints.download(checkpoints.resolve_hub({REPO!r}, 'main')))"
    )
    library = str(Path(checkpoints.__file__).parents[1])
    settings = {"PYTHONPATH": library, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(cache)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def test_a_killed_download_leaves_nothing_behind(hub, root, cache):
    stall = hub.inject("stall", WEIGHTS, after=100_000)
    with another_process(hub, cache) as process:
        until(lambda: stall.hits)
        assert checkpoints.remove_stale(REPO, cache_dir=cache) == 0, "the download is alive"
        process.kill()
        process.wait()
    assert len(leftovers(cache)) == 1
    assert same(fetch(hub, cache), root / REPO / "main")
    assert leftovers(cache) == []
    assert hub.count("GET", "/config.json", 200) == 1


def test_two_processes_fetch_a_revision_once(hub, root, cache):
    with another_process(hub, cache) as first, another_process(hub, cache) as second:
        outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert same(Path(outputs[0][0].strip()), root / REPO / "main")
    assert hub.count("GET", "/resolve/", 200) == 4


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_no_room_is_known_before_the_weights_are_asked_for(hub, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    assert "0.00 GB free" in error_of(fetch, hub, cache)
    assert hub.count("GET", WEIGHTS) == 0
    monkeypatch.undo()
    assert fetch(hub, cache).is_dir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    assert fetch(hub, cache).is_dir(), "what is there needs no room"


@contextlib.contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size`: the kernel refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_while_writing(hub, root, cache):
    with largest_file(100_000):
        message = error_of(fetch, hub, cache)
    assert "model.safetensors: no room" in message
    assert "HF_HOME" in message
    assert leftovers(cache) == []
    assert hub.count("GET", WEIGHTS) == 1
    assert same(fetch(hub, cache), root / REPO / "main")


# Folders of one's own


def described(folder):
    return checkpoints.folder_content(folder, source="directory")


def test_a_folder_is_described_by_its_contents(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "README.md").write_text("not needed")
    content = checkpoints.folder_content(folder, source="directory")
    assert (content["source"], content["folder"]) == ("directory", str(folder))
    assert content["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "README.md"
    }
    assert checkpoints.open_checkpoint(write_manifest(tmp_path, content)) == folder


def test_a_relative_folder_stays_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(Path("models/own"), shards=True)
    content = checkpoints.folder_content("models/own", source="train")
    assert str(tmp_path) not in json.dumps(content)
    assert checkpoints.open_checkpoint(write_manifest(Path("."), content)) == Path("models/own")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", checkpoints.INDEX, SHARDS[0]])
def test_a_folder_that_lacks_something(name, tmp_path):
    folder = write_model(tmp_path / "model", shards=True)
    (folder / name).unlink()
    message = error_of(described, folder)
    assert name in message
    assert str(folder) in message


def test_a_folder_that_is_none(tmp_path):
    assert "no such folder" in error_of(described, tmp_path / "nothing")
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text("{")
    assert "config.json: not valid JSON" in error_of(described, folder)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.integers(min_value=0, max_value=999))
def test_truncated_weights_are_found_wherever_they_end(kept, tmp_path):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    write_model(folder, size=200)
    weights = folder / checkpoints.WEIGHTS
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size * kept // 1000])
    assert f"{checkpoints.WEIGHTS}: " in error_of(described, folder)


def test_a_changed_folder_is_not_opened(tmp_path):
    folder = write_model(tmp_path / "model")
    written = write_manifest(tmp_path, described(folder))
    (folder / "config.json").write_text('{"model_type": "gpt_neoy"}\n')
    message = error_of(checkpoints.open_checkpoint, written)
    assert f"{folder}/config.json is not the file" in message
    assert str(written) in message
    (folder / "config.json").write_text("{}")
    assert "2 bytes where the manifest says 27" in error_of(checkpoints.open_checkpoint, written)
    (folder / "config.json").unlink()
    assert "config.json is missing" in error_of(checkpoints.open_checkpoint, written)


def test_what_was_fetched_is_a_model_transformers_loads(hub, root, cache):
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = GPTNeoXForCausalLM(config).eval()
    folder = root / REPO / "step1"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    hub.inject("reset", "step1", after=2000)
    loaded = AutoModelForCausalLM.from_pretrained(
        fetch(hub, cache, "step1"), local_files_only=True, dtype=torch.float32
    )
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(tokens).logits, model(tokens).logits, rtol=0, atol=0)


# Small things


@given(data=st.binary(max_size=2000))
def test_git_names_are_the_librarys(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("oid") / "file"
    path.write_bytes(data)
    assert checkpoints._git_oid(path) == git_hash(data)


def test_weight_names_prefer_the_single_file_as_transformers_does():
    assert checkpoints.weight_names([*SHARDS, checkpoints.WEIGHTS]) == (checkpoints.WEIGHTS,)
    assert checkpoints.weight_names([*reversed(SHARDS), "adapter_model.safetensors", checkpoints.INDEX]) == SHARDS
    assert checkpoints.weight_names(["pytorch_model.bin"]) == ()


def test_a_hub_revision_is_a_value(hub, cache):
    assert isinstance(resolve(hub, cache), HubRevision)
    assert resolve(hub, cache) == resolve(hub, cache)
