"""One change at a time: exactly the rules whose configuration or code it touches would run again.

Where a rule's input is made again, Snakemake gives that as its reason; so the rules expected here are the first ones of
each path that the change touches.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

SMOKE = ("--configfile", "config/smoke.yaml")
FIGURES = {
    f"draw_{name}"
    for name in (
        *(
            "capacity",
            "dictionaries",
            "embedding",
            "frozen_embeddings",
            "geometry",
            "layers",
            "layers_by_step",
            "ladder",
        ),
        *("leak", "mechanisms", "needed", "neurons", "perturbations", "steering", "verdicts"),
    )
}
PROBING = {"train_probes", "control_probes", "probe_capacity", "probe_planted"}
MECHANISMS = {"measure_interference", "ablate_components"}
ON_NEURONS = {"probe_neurons", "read_layers"}
INSIDE = {"attribute_neurons", *ON_NEURONS}


@pytest.fixture
def changed(smoke):
    """Write a file for the length of a test."""
    saved: dict[Path, bytes] = {}

    def change(path: str, text: str) -> None:
        file = smoke.root / path
        saved.setdefault(file, file.read_bytes())
        file.write_text(text)

    yield change
    for file, content in saved.items():
        file.write_bytes(content)


def overlay(smoke, **changes):
    """The smoke experiment with some keys set, as canonical YAML."""
    config = yaml.safe_load((smoke.root / "config/smoke.yaml").read_text())
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return yaml.safe_dump(config)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "statistics__resamples",
            300,
            PROBING
            | MECHANISMS
            | INSIDE
            | {"measure_behaviour", "measure_dictionaries", "measure_geometry", "swap_features", "steer_features"},
        ),
        ("probes__shuffles", 3, PROBING | ON_NEURONS),
        ("capacity__epochs", 3, {"probe_capacity"}),
        ("use__nulls", 20, {"swap_features"}),
        ("steering__coefficients", [1, 3], {"steer_features"}),
        ("steering__revisions", 2, set()),
        ("steering__continuations", {"elsewhere": {"truth": {"positive": "a", "negative": "b"}}}, set()),
        ("verdicts__effect", 0.1, {"judge_targets"}),
        ("calibration__draws", 5, set()),
        ("probes__seed", 1, {"audit_design", "probe_planted", "train_frozen_embeddings"}),
        ("planted__noise", 0.2, {"probe_planted"}),
        ("activations__token_budget", 4096, {"extract_activations", "train_dictionaries", *MECHANISMS, *INSIDE}),
        ("interference__permutations", 200, {"measure_interference"}),
        ("interference__rungs", ["permuted_columns", "init"], set()),
        ("ablation__verified", 5, {"ablate_components"}),
        ("dictionaries__steps", 11, {"train_dictionaries"}),
        ("dictionaries__draws", 21, {"measure_dictionaries"}),
        # One more is a job of its own, and an input more of the measuring one.
        ("dictionaries__pretrained", {"other": {"source": "directory", "model": "tiny", "path": "nowhere"}}, set()),
        # Off in this experiment.
        ("rare_features__steps", 11, set()),
        ("frozen_embeddings__finetune", 3, {"train_frozen_embeddings"}),
        # A seed more is a job of its own.
        ("frozen_embeddings__seeds", 3, set()),
        ("embedding__folds", 3, {"measure_embedding"}),
        ("neurons__count", 3, {"attribute_neurons"}),
        ("neurons__k", [1, 4], {"probe_neurons"}),
        ("neurons__lens__steps", 5, {"read_layers"}),
        ("neurons__rungs", ["permuted_columns", "init"], set()),
        ("controls__seeds", 3, {"extract_activations"}),
        ("models__tiny__training__learning_rate", 0.001, {"train_model"}),
        ("corpora__small__seed", 1, {"train_model", "train_frozen_embeddings", "write_design"}),
        ("designs__factorial_small__seed", 1, {"write_design"}),
        (
            "designs__rax_small__protocols",
            ["carriers", "items", "published"],
            {"write_design", "probe_planted"},
        ),
    ],
)
def test_a_key_of_the_configuration(smoke, changed, key, value, expected):
    changed("config/smoke.yaml", overlay(smoke, **{key: value}))
    assert smoke.triggered(*SMOKE) == expected


def test_more_models_designs_and_controls_rerun_nothing_that_is_there(smoke, changed):
    text = overlay(
        smoke,
        run__controls=["init", "gaussian"],
        models__other={"source": "train", "corpus": "small", "training": {"steps": 4}},
        run__models=["tiny", "other"],
        designs__factorial_other={
            **yaml.safe_load((smoke.root / "config/smoke.yaml").read_text())["designs"]["factorial_small"],
            "seed": 5,
        },
        run__designs=["factorial_small", "rax_small", "factorial_other"],
    )
    changed("config/smoke.yaml", text)
    assert smoke.triggered(*SMOKE) == set()


def test_the_order_of_keys_and_how_a_number_is_written_change_nothing(smoke, changed):
    config = yaml.safe_load((smoke.root / "config/smoke.yaml").read_text())
    reordered = {key: config[key] for key in reversed(config)}
    changed("config/smoke.yaml", yaml.safe_dump(reordered, sort_keys=False).replace("noise: 0.1", "noise: 0.10"))
    assert smoke.triggered(*SMOKE) == set()


MODULES = {
    "planted": {"probe_planted"},
    "probe_controls": {"control_probes", "probe_capacity", "measure_dictionaries", *ON_NEURONS},
    "capacity": {"probe_capacity", "measure_dictionaries", *ON_NEURONS},
    "behaviour": {"measure_behaviour"},
    "embedded_model": {"train_model", "train_frozen_embeddings"},
    "plots": FIGURES,
    "probes": PROBING
    | ON_NEURONS
    | {"measure_dictionaries", "measure_geometry", "ablate_components", "steer_features", "train_frozen_embeddings"},
    "statistics": {"audit_design", "probe_planted", "draw_embedding", "train_frozen_embeddings"},
    "probe_grid": PROBING
    | ON_NEURONS
    | {"measure_dictionaries", "measure_geometry", "ablate_components", "train_frozen_embeddings"},
    "label_controls": {
        *("control_probes", "measure_dictionaries", "measure_geometry", "probe_capacity"),
        *("swap_features", "steer_features"),
        *ON_NEURONS,
    },
    "geometry": {"measure_geometry"},
    "across_training": {"summarise_training"},
    "causal_use": {"swap_features", "steer_features"},
    "directions": {"steer_features"},
    "interventions": {"steer_features", "swap_features"},
    "held_out_probes": {"steer_features"},
    "dictionary_rows": {"steer_features"},
    "matched_divergence": {"steer_features"},
    "steering": {"steer_features"},
    "detection": {"steer_features"},
    "steering_plots": {"draw_steering"},
    "judgement": {"judge_targets"},
    "claims": {"judge_claims"},
    "ledger": {"judge_claims"},
    "verdict_plots": {"draw_verdicts"},
    "components": MECHANISMS | INSIDE | {"train_frozen_embeddings"},
    "attribution": MECHANISMS | {"attribute_neurons", "read_layers"},
    "interference": {"measure_interference", "attribute_neurons", "read_layers"},
    "frozen_embeddings": {"train_frozen_embeddings"},
    "frozen_embedding_table": {"train_frozen_embeddings"},
    "frozen_embedding_plots": {"draw_frozen_embeddings"},
    "embedding": {"measure_embedding"},
    "embedding_codes": {"measure_embedding"},
    "neuron_sources": {"attribute_neurons", "read_layers"},
    "sparse_neurons": {"probe_neurons"},
    "layerwise": {"read_layers"},
    "neuron_plots": {"draw_embedding", "draw_layers", "draw_neurons"},
    "ablation": {"ablate_components"},
    "dictionary_training": {"train_dictionaries"},
    "pretrained": {"train_dictionaries"},
    "rare_features": set(),
    "rare_feature_plots": set(),
    "sensitivity": {"measure_dictionaries"},
    "dictionary_plots": {"draw_dictionaries", "draw_perturbations"},
    "progress": set(),
    "plan": set(),
    "configuration": set(),
    "footprint": set(),
    "report": set(),
    "readme": set(),
    "claims_compared": set(),
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_of_the_library(smoke, changed, module):
    path = f"workflow/scripts/counterprobe/{module}.py"
    changed(path, (smoke.root / path).read_text() + "\n# edited\n")
    assert smoke.triggered(*SMOKE) == MODULES[module]


def test_a_script(smoke, changed):
    path = "workflow/scripts/measure_behaviour.py"
    changed(path, (smoke.root / path).read_text() + "\n# edited\n")
    assert smoke.triggered(*SMOKE) == {"measure_behaviour"}


def test_code_of_a_notebook_counts_and_its_words_do_not(smoke, changed):
    path = "workflow/notebooks/leak.ipynb"
    notebook = json.loads((smoke.root / path).read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"].append("\nMore words.")
    changed(path, json.dumps(notebook))
    assert smoke.triggered(*SMOKE) == set()
    notebook["cells"][-1]["source"].append("\n# edited")
    changed(path, json.dumps(notebook))
    assert smoke.triggered(*SMOKE) == {"draw_leak"}


def test_an_environment(smoke, changed):
    path = "envs/plots.yaml"
    changed(path, (smoke.root / path).read_text() + "# edited\n")
    assert smoke.triggered(*SMOKE) == FIGURES | {"judge_claims"}


def test_touching_scripts_and_configuration_reruns_nothing(smoke):
    for path in (smoke.root / "workflow/scripts").rglob("*.py"):
        os.utime(path)
    os.utime(smoke.root / "config/smoke.yaml")
    assert smoke.triggered(*SMOKE) == set()


def test_the_folder_can_be_moved(smoke, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(smoke.root, moved, symlinks=True)
    assert "Nothing to be done" in type(smoke)(moved).run("--dry-run", *SMOKE)
