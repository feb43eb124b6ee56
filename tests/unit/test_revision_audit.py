"""The audit of revisions against hubs on which some revisions are not what their names say."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopback_hub import Hub

from counterprobe import checkpoints, revision_audit
from counterprobe.progress import UserError

REPO = "org/suite"
STEPS = ("step0", "step1", "step2", "step4")


def write(root, revision, *seeds):
    """A revision whose weights are drawn from one seed, or its shards from several."""
    folder = root / REPO / revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{n:05d}-of-{len(seeds):05d}.safetensors" for n in range(1, len(seeds) + 1)]
    for name, seed in zip(names if len(seeds) > 1 else ["model.safetensors"], seeds, strict=True):
        save_file({"w": np.random.default_rng(seed).standard_normal(50)}, folder / name)
    if len(seeds) > 1:
        index = {"weight_map": {f"w{n}": name for n, name in enumerate(names)}}
        (folder / checkpoints.INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def root(tmp_path):
    for number, revision in enumerate((*STEPS, "main")):
        write(tmp_path / "hub", revision, number)
    return tmp_path / "hub"


def audit(root, revisions=STEPS, **options):
    with Hub(root) as hub:
        table = revision_audit.audit(REPO, revisions, endpoint=hub.endpoint, **options)
        assert hub.count(where="/resolve/") == 0, "an audit fetches nothing"
    return table


def test_revisions_of_their_own(root):
    table = audit(root)
    assert tuple(table.columns) == revision_audit.COLUMNS
    assert list(table["revision"]) == list(STEPS)
    assert set(table["verdict"]) == {"unique"}
    assert not table["allowed"].any()
    files = [root / REPO / revision / "model.safetensors" for revision in STEPS]
    assert list(table["weights_sha256"]) == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert list(table["bytes"]) == [file.stat().st_size for file in files]
    with Hub(root) as hub:
        assert list(table["commit"]) == [hub.commit(REPO, revision) for revision in STEPS]
    revision_audit.refuse(table)


def test_audits_of_several_models_in_one_table(root, tmp_path):
    table = audit(root)
    for model in ("b", "a.c"):
        (tmp_path / f"{model}.parquet").write_bytes(revision_audit.to_parquet(table))
    assert (tmp_path / "b.parquet").read_bytes() == revision_audit.to_parquet(audit(root))
    gathered = revision_audit.gather([tmp_path / "b.parquet", tmp_path / "a.c.parquet"])
    assert list(gathered.columns) == ["model", *revision_audit.COLUMNS]
    assert list(gathered["model"]) == ["a.c"] * 4 + ["b"] * 4
    assert gathered[gathered["model"] == "b"].drop(columns="model").reset_index(drop=True).equals(table)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b\.parquet"):
        revision_audit.gather([tmp_path / "b.parquet"])


def test_an_untrained_step_that_is_the_trained_model(root):
    trained = (root / REPO / "main" / "model.safetensors").read_bytes()
    (root / REPO / "step0" / "model.safetensors").write_bytes(trained)
    table = audit(root).set_index("revision")
    assert dict(table["verdict"]) == {
        "step0": "refused",
        "step1": "unique",
        "step2": "unique",
        "step4": "unique",
    }
    assert table.loc["step0", "same_as"] == "main"
    with pytest.raises(UserError, match=r"org/suite: 1 of 4 revisions .*step0 \(as main\)"):
        revision_audit.refuse(table.reset_index())


def test_two_steps_with_the_same_weights_are_both_refused_unless_allowed(root):
    twin = (root / REPO / "step1" / "model.safetensors").read_bytes()
    (root / REPO / "step2" / "model.safetensors").write_bytes(twin)
    table = audit(root).set_index("revision")
    assert dict(table["same_as"]) == {"step0": "", "step1": "step2", "step2": "step1", "step4": ""}
    reason = "the learning rate is zero in the first step"
    table = audit(root, allow={"step1": reason}).set_index("revision")
    assert list(table.loc["step1", ["allowed", "reason", "verdict"]]) == [True, reason, "allowed"]
    assert table.loc["step2", "verdict"] == "refused"
    table = audit(root, allow={"step1": reason, "step2": reason, "step4": "not even needed"})
    assert list(table["verdict"]) == ["unique", "allowed", "allowed", "unique"]
    revision_audit.refuse(table)


def test_a_step_without_its_twin_in_the_run_is_compared_with_main_only(root):
    twin = (root / REPO / "step1" / "model.safetensors").read_bytes()
    (root / REPO / "step2" / "model.safetensors").write_bytes(twin)
    assert list(audit(root, ("step2",))["verdict"]) == ["unique"]


def test_main_itself_claims_no_step(root):
    trained = (root / REPO / "main" / "model.safetensors").read_bytes()
    (root / REPO / "step4" / "model.safetensors").write_bytes(trained)
    table = audit(root, ("step4", "main"))
    assert list(table["verdict"]) == ["refused", "reference"]
    assert list(table["same_as"]) == ["main", "step4"]


def test_one_shard_of_another_revision(root):
    for revision, seeds in (("a", (10, 11)), ("b", (12, 11)), ("c", (13, 14)), ("d", (13, 14))):
        write(root, revision, *seeds)
    table = audit(root, tuple("abcd")).set_index("revision")
    assert table.loc["a", "same_as"] == "b (model-00002-of-00002.safetensors)"
    assert table.loc["c", "same_as"] == "d"
    assert set(table["verdict"]) == {"refused"}
    assert table.loc["c", "weights_sha256"] == table.loc["d", "weights_sha256"]
    assert table["weights_sha256"].nunique() == 3
    shards = (root / REPO / "a").glob("*.safetensors")
    assert table.loc["a", "bytes"] == sum(path.stat().st_size for path in shards)


def test_what_else_keeps_a_revision_from_being_used(root):
    weights = root / REPO / "step2" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    table = audit(root, (*STEPS, "step8")).set_index("revision")
    assert table.loc["step2", "verdict"] == "no safetensors"
    assert table.loc["step8", "verdict"] == "missing"
    with pytest.raises(UserError, match="1 of 5 revisions not on the hub: step8"):
        revision_audit.refuse(table.reset_index())
    with pytest.raises(UserError, match="1 of 4 revisions without safetensors weights: step2"):
        revision_audit.refuse(table.drop("step8").reset_index())


def test_many_culprits_make_one_line(root):
    for step in range(100, 120):
        write(root, f"step{step}", 4)
    with pytest.raises(UserError) as error:
        revision_audit.refuse(audit(root, [f"step{step}" for step in range(100, 120)]))
    assert "20 of 20" in str(error.value)
    assert "step107 (as main and 19 more) and 12 more;" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_allowance_needs_a_reason(root):
    with pytest.raises(UserError, match="step1 is allowed without a reason"):
        audit(root, allow={"step1": " "})


def test_a_hub_that_cannot_be_read_is_an_error(root, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Hub(root) as hub:
        hub.inject("status", "step2", times=3)
        assert len(revision_audit.audit(REPO, STEPS, endpoint=hub.endpoint)) == 4
        hub.inject("status", "step2", times=None)
        with pytest.raises(UserError, match=r"org/suite at step2: .*503"):
            revision_audit.audit(REPO, STEPS, endpoint=hub.endpoint)


def test_a_repository_without_main(root, caplog):
    (root / REPO / "main").rename(root / REPO / "final")
    assert set(audit(root)["verdict"]) == {"unique"}
    assert "no main to compare with" in caplog.text
    assert set(audit(root, reference="final")["verdict"]) == {"unique"}


def test_offline_the_cache_is_audited(root, tmp_path, monkeypatch):
    (root / REPO / "step0" / "model.safetensors").write_bytes(
        (root / REPO / "step1" / "model.safetensors").read_bytes()
    )
    options = {"cache_dir": tmp_path / "cache"}
    with Hub(root) as hub:
        for revision in STEPS[:3]:
            found = checkpoints.resolve_hub(REPO, revision, endpoint=hub.endpoint, **options)
            checkpoints.download(found, endpoint=hub.endpoint, **options)
    online = audit(root, STEPS[:3])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = audit(root, STEPS, **options)
    assert list(offline["verdict"]) == ["refused", "refused", "unique", "missing"]
    assert offline.iloc[:3].equals(online)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_refused_are_exactly_those_that_share_weights(seeds, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    names = [f"step{number}" for number in range(len(seeds))]
    for name, seed in zip(names, seeds, strict=True):
        write(root, name, seed)
    write(root, "main", 3)
    table = audit(root, names)
    expected = ["refused" if [*seeds, 3].count(seed) > 1 else "unique" for seed in seeds]
    assert list(table["verdict"]) == expected
