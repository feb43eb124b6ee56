"""Jobs of an experiment, known from its configuration alone."""

import copy

import pytest

from counterprobe import plan
from counterprobe.progress import UserError
from counterprobe.revisions import PYTHIA_STEPS, powers_of_two, revisions, step_of

CONFIG = {
    "models": {
        "m": {"source": "train", "training": {"steps": 6}, "revisions": "log2"},
        "d": {"source": "directory", "path": "x"},
        "h": {"source": "hub", "repo": "a/b", "revisions": "pythia"},
    },
    "designs": {
        "f": {"source": "statements", "layout": "factorial", "protocols": ["carriers", "items"]},
        "r": {"source": "statements", "layout": "rax", "protocols": ["items", "published"]},
        "c": {"source": "csv", "protocols": ["items"]},
    },
    "run": {
        "models": ["m"],
        "designs": ["f", "r"],
        "reads": {},
        "ladders": {},
        "controls": ["init", "gaussian"],
        "last_only": ["r"],
        "dictionaries": [],
        "frozen_embeddings": [],
        "rare_features": [],
    },
    "dictionaries": {"rungs": ["init"], "pretrained": {}},
    "controls": {"revisions": "last"},
}


def config(**run):
    made = copy.deepcopy(CONFIG)
    made["run"] |= run
    return made


@pytest.mark.parametrize(("last", "steps"), [(1, (0, 1)), (2, (0, 1, 2)), (6, (0, 1, 2, 4, 6)), (8, (0, 1, 2, 4, 8))])
def test_powers_of_two_end_in_the_last_step(last, steps):
    assert powers_of_two(last) == steps


def test_schedules():
    assert revisions(CONFIG["models"]["m"]) == ("step0", "step1", "step2", "step4", "step6")
    assert revisions(CONFIG["models"]["d"]) == ("main",)
    assert len(revisions(CONFIG["models"]["h"])) == len(PYTHIA_STEPS) == 154
    assert len(revisions({"source": "hub", "revisions": "log2"})) == 20
    assert revisions({"source": "hub", "revisions": ["main"]}) == ("main",)
    with pytest.raises(UserError, match="log3"):
        revisions({"source": "hub", "revisions": "log3"})


@pytest.mark.parametrize(
    ("revision", "step"), [("step0", 0), ("step143000", 143000), ("main", -1), ("12", -1), ("stepx", -1)]
)
def test_step_of(revision, step):
    assert step_of(revision) == step


def test_rungs_and_last_only_designs_stand_at_the_last_revision_only():
    units = list(plan.units(config()))
    assert {u.revision for u in units if u.design == "f" and u.weights == "trained"} == set(
        revisions(CONFIG["models"]["m"])
    )
    assert {u.revision for u in units if u.design == "r" or u.weights != "trained"} == {"step6"}
    assert {u.weights for u in units} == {"trained", "init", "gaussian"}
    assert len(units) == len(set(units)) == 5 + 2 + 1 + 1
    assert {u.weights for u in units if u.design == "r"} == {"trained", "init"}


def test_label_controls_on_trained_weights_of_controlled_revisions():
    assert [(u.revision, u.weights, u.design) for u in plan.controlled_units(config())] == [("step6", "trained", "f")]


def test_capacity_is_measured_under_every_kind_of_weights_at_the_controlled_revisions():
    units = list(plan.capacity_units(config()))
    assert {(u.revision, u.design) for u in units} == {("step6", "f")}
    assert {u.weights for u in units} == {"trained", "init", "gaussian"}


def test_only_generated_factorial_texts_are_answered():
    assert {u.design for u in plan.answering_units(config(designs=["f", "r", "c"]))} == {"f"}


def test_figures_follow_the_designs():
    assert set(plan.probe_figures(config())) == {
        "verdicts",
        "m/f/layers_by_step",
        "m/f/geometry",
        "m/f/capacity",
        "m/f/ladder",
        "m/f/needed",
        "m/r/leak",
    }
    assert set(plan.probe_figures(config(designs=["c"], controls=[]))) == {
        "verdicts",
        "m/c/layers_by_step",
        "m/c/geometry",
        "m/c/capacity",
    }


def test_mechanisms_are_measured_where_label_controls_are_and_can_be_left_out():
    chosen = config(mechanisms=["interference", "ablation"]) | {"interference": {"rungs": ["gaussian"]}}
    units = [(u.revision, u.weights, u.design) for u in plan.interference_units(chosen)]
    assert units == [("step6", "trained", "f"), ("step6", "gaussian", "f")]
    assert list(plan.ablation_units(chosen)) == list(plan.controlled_units(chosen))
    assert list(plan.mechanism_figures(chosen)) == ["m/f/mechanisms"]
    assert plan.mechanism_tables(chosen) == ("interference", "ablation")
    one = config(mechanisms=["ablation"]) | {"interference": {"rungs": []}}
    assert list(plan.interference_units(one)) == list(plan.mechanism_figures(one)) == []
    assert len(list(plan.ablation_units(one))) == 1


def test_steering_stands_at_the_last_revisions_on_designs_that_have_answers():
    settings = {"revisions": 2, "continuations": {}}
    chosen = config(steering=["m"], designs=["f", "r", "c"]) | {"steering": settings}
    units = [(u.revision, u.weights, u.design) for u in plan.steered_units(chosen)]
    assert units == [("step4", "trained", "f"), ("step6", "trained", "f")]
    assert plan.steering_tables(chosen) == ("steering",)
    assert list(plan.steering_figures(chosen)) == ["m/f/steering"]
    asked = chosen | {
        "steering": settings | {"continuations": {"c": {"truth": {}}}},
        "controls": {"revisions": ["step1"]},
    }
    assert {(u.revision, u.design) for u in plan.steered_units(asked)} == {
        (revision, design) for revision in ("step1", "step4", "step6") for design in ("f", "c")
    }
    nobody = chosen | {"run": chosen["run"] | {"steering": []}}
    assert plan.steering_tables(nobody) == ()
    assert list(plan.steering_figures(nobody)) == []


def test_neurons_are_looked_at_where_label_controls_are_and_only_of_models_that_are_named():
    chosen = config(neurons=["m", "elsewhere"]) | {"neurons": {"rungs": ["gaussian"]}}
    assert plan.opened_models(chosen) == ("m",)
    assert list(plan.neuron_units(chosen)) == list(plan.controlled_units(chosen))
    assert [unit.weights for unit in plan.sparse_units(chosen)] == ["trained", "gaussian"]
    assert list(plan.neuron_figures(chosen)) == ["m/embedding", "m/f/neurons", "m/f/layers"]
    assert plan.neuron_tables(chosen) == ("embedding", "neurons")
    none = config(neurons=[]) | {"neurons": {"rungs": []}}
    assert plan.neuron_tables(none) == ()
    assert not [*plan.neuron_figures(none), *plan.neuron_units(none)]


def test_embeddings_that_never_move_have_one_table_and_one_figure():
    assert plan.frozen_tables(config()) == ()
    assert not list(plan.frozen_figures(config()))
    chosen = config(frozen_embeddings=["gaussian"])
    assert plan.frozen_tables(chosen) == ("frozen_embeddings",)
    assert list(plan.frozen_figures(chosen)) == ["frozen_embeddings"]
    assert list(plan.frozen_seeds({"frozen_embeddings": {"seed": 5, "seeds": 3}})) == [5, 6, 7]


def test_planted_features_have_one_table_and_one_figure():
    assert plan.planted_tables(config()) == ()
    assert "rare_features" not in plan.planted_figures(config())
    chosen = config(rare_features=["ica", "random"])
    assert plan.planted_tables(chosen) == ("rare_features",)
    assert list(plan.planted_figures(chosen)) == ["rare_features"]


def test_a_controlled_revision_has_to_exist():
    wrong = config()
    wrong["controls"] = {"revisions": ["step5"]}
    with pytest.raises(UserError, match="m has no revision step5"):
        list(plan.units(wrong))


def test_jobs_grow_linearly_with_the_suite():
    suite = config(models=[f"h{size}" for size in range(8)], controls=["init", "gaussian"], designs=["f"], last_only=[])
    suite["models"] |= {f"h{size}": CONFIG["models"]["h"] for size in range(8)}
    assert len(list(plan.units(suite))) == 8 * (154 + 2)


def test_dictionaries_of_the_models_that_get_them_under_trained_weights_and_every_rung():
    assert not list(plan.dictionary_units(config()))
    assert plan.dictionary_tables(config()) == ()
    units = list(plan.dictionary_units(config(dictionaries=["m"])))
    assert [(u.revision, u.weights, u.design) for u in units] == [("step6", "trained", "f"), ("step6", "init", "f")]
    assert list(plan.dictionary_figures(config(dictionaries=["m"]))) == ["m/f/dictionaries", "m/f/perturbations"]
    assert not list(plan.dictionary_units(config(dictionaries=["another"])))


def test_dictionaries_of_others_for_the_models_that_get_dictionaries():
    entries = {"a": {"model": "m"}, "b": {"model": "another"}, "c": {"model": "m"}}
    read = {**config(dictionaries=["m"]), "dictionaries": {"rungs": ["init"], "pretrained": entries}}
    assert plan.pretrained(read) == plan.pretrained(read, "m") == ("a", "c")
    assert plan.pretrained(read, "another") == ()
    assert plan.pretrained({**read, "run": {**read["run"], "dictionaries": []}}) == ()
