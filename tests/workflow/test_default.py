"""The embedded model of the default experiment, trained: what it needs it has, and had not before training."""

import pytest
import yaml

from counterprobe import tables

LITTLE = {
    "experiment": "needed",
    "run": {
        "models": ["embedded"],
        "designs": ["factorial"],
        "controls": [],
        "last_only": [],
        "toys": [],
        "rare_features": [],
        "frozen_embeddings": [],
    },
    "activations": {"positions": ["last"], "primary_position": "last", "bos": [False]},
    "probes": {"kinds": ["logistic"], "shuffles": 2, "control_tasks": 2},
    "steering": {
        "revisions": 1,
        "directions": ["diff_mean", "logistic", "surgical_regressed"],
        "positions": ["answer", "generated"],
    },
}


@pytest.mark.slow
def test_the_needed_xor_is_learned_was_not_there_before_and_can_be_steered(fresh_checkout):
    checkout = fresh_checkout()
    config = yaml.safe_load((checkout.root / "config.yaml").read_text())
    last = f"step{config['models']['embedded']['training']['steps']}"
    (checkout.root / "needed.yaml").write_text(
        yaml.safe_dump({**LITTLE, "models": {"embedded": {"revisions": ["step0", last]}}})
    )
    checkout.run("--configfile", "needed.yaml", "--until", "gather_probes", "gather_behaviour", "gather_steering")
    probes = tables.read(checkout.root / "results/needed/tables/probes.parquet")
    truth = probes[
        (probes.target == "negated^match")
        & (probes.score == "accuracy")
        & (probes.probe == "logistic")
        & (probes.control == "none")
        & (probes.representation == "activations")
        & (probes.protocol == "carriers")
        & (probes.layer == -1)
    ].set_index("revision")
    assert truth.estimate[last] >= 0.95
    assert truth.lower["step0"] <= 0.5 <= truth.upper["step0"] + 0.02
    behaviour = tables.read(checkout.root / "results/needed/tables/behaviour.parquet")
    answers = behaviour[(behaviour.target == "negated^match") & (behaviour.score == "accuracy")].set_index("revision")
    assert answers.estimate[last] > 0.99
    steering = tables.read(checkout.root / "results/needed/tables/steering.parquet")
    chosen = steering[(steering.probe == "diff_mean:chosen") & steering.estimate.notna()].set_index("score")
    paired = steering[steering.probe.isin(["logistic-diff_mean:equal", "logistic-surgical_regressed:equal"])]
    for target in ("speaker", "negated^match"):
        found = chosen[(chosen.target == target) & (chosen.position == "answer")].estimate
        assert found["flip"] >= 0.95
        assert (found.index.str.startswith("flip_on_")).any()
        assert found[found.index.str.startswith("flip_on_")].max() <= 0.1
        assert found["delta_nll"] <= 0.1
        # The probe's price to the other answers is compared text by text, where steering reaches all of them.
        compared = paired[(paired.target == target) & (paired.position == "generated")].set_index("probe")
        assert set(compared.index) == {"logistic-diff_mean:equal", "logistic-surgical_regressed:equal"}
        assert (compared.lower <= compared.upper).all()
    # What reads best does not write best, scaled alike (Marks and Tegmark 2024).
    effects = steering[(steering.target == "negated^match") & (steering.score == "nie_false_true")].set_index("probe")
    assert effects.lower["mass_mean-logistic:got"] > 0
    assert effects.estimate["logistic:got"] < 0.7 * effects.estimate["mass_mean:got"]
