"""A user's own model and texts: a folder and two tables; then a hub, spoken to over loopback."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from counterprobe import checksum, tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import Hub

PROBES = "results/{}/tables/probes.parquet"


def test_the_example_of_the_readme(shared, fresh_checkout):
    checkout = fresh_checkout()
    checkout.run("--configfile", "config/own-model.yaml", "tests/workflow/own-model-small.yaml")
    probes = tables.read(checkout.root / PROBES.format("own-model-small"))
    read = probes[(probes.score == "accuracy") & (probes.control == "none") & (probes.representation == "activations")]
    assert set(read.target) == {"negated", "truth", "negated^truth"}
    assert set(read.protocol) == {"items"}
    assert set(read.weights) == {"trained", "init"}
    negated = read[(read.target == "negated") & (read.weights == "trained") & (read.layer == 5)]
    assert negated.estimate.min() > 0.95
    geometry = tables.read(checkout.root / "results/own-model-small/tables/geometry.parquet")
    of_xor = geometry[(geometry.target == "negated^truth") & (geometry.weights == "trained") & (geometry.layer == 5)]
    assert {"salience", "gain_share", "parallelism", "margin_ratio"} <= set(of_xor.score)
    assert of_xor.note.str.startswith("closed under XOR: negated ^ truth = match").all()
    figures = {path.name for path in (checkout.root / "results/own-model-small/figures/mine/cities").iterdir()}
    assert {"layers_by_step.png", "geometry.png", "ladder.pdf"} <= figures


@pytest.fixture
def hub(shared, tmp_path):
    """A repository of two revisions of one small model."""
    for revision in ("step0", "main"):
        folder = tmp_path / "repos" / "someone" / "stories" / revision
        shutil.copytree(shared / "models" / "stories260k", folder)
        for path in folder.iterdir():
            os.chmod(path, 0o644)
    config = tmp_path / "repos/someone/stories/step0/config.json"
    config.write_text(config.read_text().rstrip() + "\n")
    with Hub(tmp_path / "repos") as served:
        yield served


def test_a_hub_by_another_overlay(hub, fresh_checkout, tmp_path):
    checkout = fresh_checkout()
    overlay = yaml.safe_load((checkout.root / "tests/workflow/own-model-small.yaml").read_text())
    overlay |= {
        "experiment": "from-hub",
        "models": {"served": {"source": "hub", "repo": "someone/stories", "revisions": ["step0", "main"]}},
        "run": overlay["run"] | {"models": ["served"], "controls": []},
    }
    (checkout.root / "hub.yaml").write_text(yaml.safe_dump(overlay))
    arguments = ("--configfile", "config/own-model.yaml", "hub.yaml", "--until", "extract_activations")
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
    # Both revisions hold the same weights: nothing is fetched until the configuration says why that is right.
    refused = checkout.snakemake(*arguments, **environment)
    assert refused.returncode == 1
    assert "someone/stories: 1 of 2 revisions with weights of another revision: step0 (as main)" in refused.stdout
    assert hub.count(where="model.safetensors") == 0
    assert "step0" in checkout.read("results/from-hub/logs/audit_revisions/served.log").decode()
    overlay["models"]["served"]["allow"] = {"step0": "planted by the test"}
    (checkout.root / "hub.yaml").write_text(yaml.safe_dump(overlay))
    hub.inject("reset", "model.safetensors", after=100_000)
    checkout.run(*arguments, **environment)
    for revision in ("step0", "main"):
        manifest = json.loads(checkout.read(f"results/from-hub/checkpoints/served/{revision}/manifest.json"))
        assert manifest["content"]["commit"] == hub.commit("someone/stories", revision)
        assert (checkout.root / f"results/from-hub/activations/served/{revision}/trained/cities/manifest.json").exists()
    asked = len(hub.requests)
    assert not re.search(r"^(local)?rule ", checkout.run(*arguments, **environment), flags=re.MULTILINE)
    assert len(hub.requests) == asked
    table = "results/from-hub/tables/revisions.parquet"
    checkout.run(table, *arguments[:3], **environment)
    found = checksum.read_parquet(checkout.root / table).to_pandas()
    assert list(found["model"] + " " + found["revision"] + " " + found["verdict"]) == [
        "served step0 allowed",
        "served main reference",
    ]
    assert b"planted by the test" in checkout.read("results/from-hub/tables/revisions.csv")


def test_one_more_revision_is_audited_and_nothing_is_fetched_again(hub, fresh_checkout, tmp_path):
    checkout = fresh_checkout()
    overlay = {
        "experiment": "from-hub",
        "models": {"served": {"source": "hub", "repo": "someone/stories", "revisions": ["main"]}},
        "run": {
            "models": ["served"],
            "designs": ["cities"],
            "controls": [],
            "last_only": [],
            "toys": [],
            "rare_features": [],
            "frozen_embeddings": [],
        },
    }
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
    arguments = ("--configfile", "config/own-model.yaml", "hub.yaml", "--until", "download_revision")
    (checkout.root / "hub.yaml").write_text(yaml.safe_dump(overlay))
    checkout.run(*arguments, **environment)
    overlay["models"]["served"] |= {"revisions": ["step0", "main"], "allow": {"step0": "planted by the test"}}
    (checkout.root / "hub.yaml").write_text(yaml.safe_dump(overlay))
    said = checkout.run(*arguments, **environment)
    ran = re.findall(r"^(?:local)?rule (\w+):", said, flags=re.MULTILINE)
    assert sorted(ran) == ["audit_revisions", "download_revision", "resolve_revision"]
