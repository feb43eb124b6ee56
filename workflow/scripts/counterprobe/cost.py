"""What an experiment will take, from its configuration and the shapes of its models, before a byte is fetched.

For each rule: jobs, core-seconds, memory of the largest job, bytes on disk, bytes from the hub. Forward passes and
training are counted in floating-point operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1: 2 a parameter and
token forward, 6 with the backward pass); probes in activation matrices [texts, width]; everything else is a start-up
time. The constants are from the default experiment on two cores of a virtual machine (2.1 GHz class x86-64, torch 2.13,
two jobs at a time), by Snakemake's own benchmark files: 1,610 core-seconds, of which training took 453 and probes 535.

Pitfalls. Meant to be right within a factor of two, and on a machine like that one; swapping, a shared disk and a slow hub
are not in it. A hub model is known by its name alone (nothing is asked); one whose name says nothing is left out, and
`Estimate.unknown` says so. Cards: CUDA_RATE is an assumption, not a measurement.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterprobe import plan
from counterprobe.revisions import revisions

# Operations a second of one core: at width 128, where training reached as many on each of two threads, and at widths
# whose products are as quick as the core gets (benchmarks/README.md).
CPU_RATE, CPU_RATE_WIDE, WIDE = 40e9, 60e9, 512
CUDA_RATE = 10e12
# Seconds until a script does its own work: bare Python, with pyarrow, with torch, with transformers, a notebook.
LIGHT, TABLES, TORCH, MODEL, NOTEBOOK = 0.25, 0.6, 3.0, 5.5, 7.0
# Seconds for an activation matrix: what does not depend on penalties and sizes, and what does (at 1,536 x 128 with 5
# penalties and 3 inner folds).
MATRIX, MATRIX_SOLVES = 0.15, 0.4
CONTROL_MATRIX = 4.0  # with 8 shuffles and 8 control tasks
PLANTED_SEED = 1.0  # 748 items of width 128
# Seconds of what explains a feature, for 1,536 texts at width 128 and the blocks of the default model.
GEOMETRY_MATRIX, CAPACITY, CAPACITY_OF_A_RUNG, INTERFERENCE, ABLATION = 0.25, 36.0, 9.0, 5.0, 90.0
# The same of steering, at a revision of the ladder (the default's doses) and at another.
STEERED, DETECTED = 100.0, 5.0
EMBEDDING_MATRIX, SOURCES, SPARSE, SPARSE_OF_A_RUNG, LAYERS = 0.6, 5.0, 28.0, 6.0, 6.0
BLOCKS = 12 * 4 * 128**2
# Seconds of a step of 1,024 tokens for 1,536 latents of width 128, and of all scores of one kind of weights.
DICTIONARY_STEP, DICTIONARY_SCORES = 0.04, 20.0
PUBLISHED = 32  # latents of a dictionary that others trained, in multiples of the width, as most are
# Features that are swapped, and tokens from the site to the last answer.
SWAPPED, TOKENS_AFTER = 6, 12
TOKENS_OF_TEXT = 20
TOKENS_OF_LINE = 27
# Lines on which a model trained around an embedding is scored.
HELD_OUT_LINES = 2048
# Seconds of each toy sweep for one unit of its work (see `_toys`).
TOY_SECONDS = {
    "trained": 30 / 180_000,
    "constructed": 11 / 8,
    "genericity": 80 / 10,
    "redundancy": 17 / 130,
    "geometry": 9 / 180_000,
}
# Seconds of a step of 256 rows for 160 latents of width 32, and of a row of that width for ICA.
RARE_STEP, RARE_ROW = 0.0016, 8e-6
HASHED_A_SECOND = 0.5e9
FETCHED_A_SECOND = 20e6
ASKED = 0.05  # seconds for the hub's listing of one revision, eight at a time
# Resident memory before any data, in bytes, by what is imported; a notebook counts its kernel and papermill.
MEMORY_LIGHT, MEMORY_TABLES, MEMORY_TORCH, MEMORY_MODEL, MEMORY_NOTEBOOK = 40e6, 160e6, 450e6, 520e6, 1.3e9
FIGURE = 240e3
VOCABULARY = 256  # of a model trained here

# (blocks, width, vocabulary) by the end of the repository's name, without -deduped.
SHAPES = {
    "pythia-14m": (6, 128, 50304),
    "pythia-31m": (6, 256, 50304),
    "pythia-70m": (6, 512, 50304),
    "pythia-160m": (12, 768, 50304),
    "pythia-410m": (24, 1024, 50304),
    "pythia-1b": (16, 2048, 50304),
    "pythia-1.4b": (24, 2048, 50304),
    "pythia-2.8b": (32, 2560, 50304),
    "pythia-6.9b": (32, 4096, 50432),
    "pythia-12b": (36, 5120, 50688),
    "gpt2": (12, 768, 50257),
    "gpt2-medium": (24, 1024, 50257),
    "gpt2-large": (36, 1280, 50257),
    "gpt2-xl": (48, 1600, 50257),
}


@dataclass(frozen=True)
class Shape:
    """What a model's cost depends on; `stored` is the bytes of one revision as it is published."""

    layers: int
    width: int
    parameters: float
    stored: float

    @property
    def blocks(self) -> float:
        """Parameters of the blocks: looking up an embedding costs nothing, and few positions are unembedded."""
        return 12.0 * self.layers * self.width**2


@dataclass(frozen=True)
class Row:
    """One rule: jobs, seconds of one core (all jobs together), bytes of memory (the largest job), bytes on disk."""

    rule: str
    jobs: int
    seconds: float
    memory: float
    disk: float
    fetched: float = 0.0


@dataclass(frozen=True)
class Estimate:
    experiment: str
    rows: tuple[Row, ...]
    unknown: tuple[str, ...]

    @property
    def jobs(self) -> int:
        return sum(row.jobs for row in self.rows)

    @property
    def disk(self) -> float:
        return sum(row.disk for row in self.rows)

    @property
    def memory(self) -> float:
        return max(row.memory for row in self.rows)

    @property
    def fetched(self) -> float:
        return sum(row.fetched for row in self.rows)

    def seconds(self, cores: int) -> float:
        """Wall time on that many cores, all of them busy."""
        return sum(row.seconds for row in self.rows) / cores


def shape(model: Mapping[str, Any]) -> Shape | None:
    """The shape of one entry of `models:`: of its architecture, its config.json or its name; None where none tells."""
    if model["source"] == "train":
        size = model["architecture"]
        return _shape(size["layers"], size["width"], VOCABULARY, tied=False, bytes_each=4)
    if model["source"] == "directory":
        folder = Path(model["path"]).expanduser()
        if not (folder / "config.json").is_file():
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        blocks = config.get("num_hidden_layers", config.get("n_layer"))
        width = config.get("hidden_size", config.get("n_embd"))
        if not blocks or not width:
            return None
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        each = 2 if "16" in str(config.get("dtype", config.get("torch_dtype"))) else 4
        return Shape(blocks, width, stored / each, 0.0)
    name = model["repo"].rpartition("/")[2].lower()
    known = SHAPES.get(name.removesuffix("-deduped"))
    if known:
        gpt2 = name.startswith("gpt2")
        return _shape(*known, tied=gpt2, bytes_each=4 if gpt2 else 2)
    told = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", name)
    if not told:
        return None
    parameters = float(told[1]) * {"m": 1e6, "b": 1e9}[told[2]]
    # Width is about 100 x blocks in the published families, and blocks hold most of the parameters.
    blocks = max(2, round((parameters / (12 * 100**2)) ** (1 / 3)))
    return Shape(blocks, 100 * blocks, parameters, 2 * parameters)


def estimate(config: Mapping[str, Any]) -> Estimate:
    """The cost of a complete, checked configuration. Reads no more than the headers of local models and tables."""
    shapes = {name: shape(config["models"][name]) for name in config["run"]["models"]}
    unknown = tuple(sorted(name for name, found in shapes.items() if found is None))
    known = {name: found for name, found in shapes.items() if found is not None}
    counted: dict[str, list[tuple[float, float, float, float]]] = {}
    for rule, *job in _jobs(config, known):
        counted.setdefault(rule, []).append(tuple(job))
    rows = []
    for rule, jobs in counted.items():
        seconds, memory, disk, fetched = zip(*jobs, strict=True)
        rows.append(Row(rule, len(jobs), *(float(x) for x in (sum(seconds), max(memory), sum(disk), sum(fetched)))))
    return Estimate(config["experiment"], tuple(rows), unknown)


def table(found: Estimate, cores: int) -> str:
    """An estimate as a person reads it: one line a rule, and what it comes to."""
    lines = [f"{'rule':<24}{'jobs':>6}{'time':>10}{'memory':>10}{'disk':>10}"]
    lines += [
        f"{row.rule:<24}{row.jobs:>6}{_time(row.seconds / cores):>10}{_size(row.memory):>10}{_size(row.disk):>10}"
        for row in found.rows
    ]
    total = f"{'in all':<24}{found.jobs:>6}{_time(found.seconds(cores)):>10}{_size(found.memory):>10}{_size(found.disk):>10}"
    fetched = f"{_size(found.fetched)} to download" if found.fetched else "nothing to download"
    lines += [total, "", f"experiment {found.experiment} on {cores} cores, within a factor of two; {fetched}"]
    lines += [f"not counted: {name}, whose size neither its name nor a config.json tells" for name in found.unknown]
    return "\n".join(lines)


def texts(design: Mapping[str, Any], corpora: Mapping[str, Any]) -> int:
    """Texts of one entry of `designs:`; a table that is not there yet counts as 1,000 rows."""
    if design["source"] == "csv":
        return sum(_rows(Path(entry["path"])) for entry in design["files"])
    items = sum(corpora[design["corpus"]]["topics"].values())
    return items * (16 if design["layout"] == "factorial" else 4)


Job = tuple[str, float, float, float, float]


def _jobs(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Iterator[Job]:
    """(rule, core-seconds, memory, disk, fetched) of every job, in the order of the stages."""
    n_texts = {name: texts(config["designs"][name], config["corpora"]) for name in config["run"]["designs"]}
    for n in n_texts.values():
        yield "write_design", LIGHT + TABLES, MEMORY_TABLES, 30 * n, 0
        yield "audit_design", TABLES, MEMORY_TABLES, 10e3, 0
    yield from _checkpoints(config, shapes)
    # A unit of an unknown model is a job like any other: it is counted as one of no size.
    nothing = Shape(0, 0, 0.0, 0.0)
    reading = config["activations"]
    for unit in plan.units(config):
        model, n = shapes.get(unit.model, nothing), n_texts[unit.design]
        passes, kept = _passes(config, unit)
        levels = len(reading.get("layers", range(model.layers + 1)))
        weights = 4 * model.parameters
        width = 2 if reading["dtype"] == "float16" else 4
        forward = 2 * model.blocks * n * TOKENS_OF_TEXT * passes / _rate(config, model)
        # A rung loads and randomises the model for each of its units.
        prepared = (weights / 0.5e9) * (1 if unit.weights == plan.TRAINED else passes)
        batch = 120 * reading["token_budget"] * model.width
        disk = kept * (levels + 1) * n * model.width * width
        yield (
            "extract_activations",
            MODEL + prepared + forward + disk / HASHED_A_SECOND,
            MEMORY_MODEL + 1.3 * weights + batch,
            disk,
            0,
        )
        solves = len(config["probes"]["penalties"]) * (config["probes"]["inner_folds"] + 1) / 20
        size = max(0.25, n * model.width / (1536 * 128))
        matrix = MATRIX + MATRIX_SOLVES * solves * size
        yield (
            "train_probes",
            TORCH + kept * levels * matrix + disk / HASHED_A_SECOND,
            MEMORY_TORCH + 160 * n * model.width,
            80e3 + kept * levels * 120 * model.width,
            0,
        )
    for unit in plan.controlled_units(config):
        model, n = shapes.get(unit.model, nothing), n_texts[unit.design]
        labels = (config["probes"]["shuffles"] + config["probes"]["control_tasks"]) / 16
        size = max(0.25, n * model.width / (1536 * 128))
        levels = len(reading.get("layers", range(model.layers + 1)))
        memory = MEMORY_TORCH + 160 * n * model.width
        yield "control_probes", TORCH + CONTROL_MATRIX * levels * labels * size, memory, 15e3, 0
    for unit in plan.answering_units(config):
        model, n = shapes.get(unit.model, nothing), n_texts[unit.design]
        asked = n * TOKENS_OF_TEXT * len(reading["bos"]) * 4
        forward = 2 * model.blocks * asked / _rate(config, model)
        memory = MEMORY_MODEL + 1.3 * 4 * model.parameters + 200 * reading["token_budget"] * max(model.width, 1)
        yield "measure_behaviour", MODEL + forward, memory, 7e3, 0
    for unit in plan.randomised_units(config):
        model, n = shapes.get(unit.model, nothing), n_texts[unit.design]
        read = 4 * n * model.width * (model.layers + 1) * _passes(config, unit)[0]
        yield "measure_health", TORCH + 5 * read / HASHED_A_SECOND, 0.85 * MEMORY_TORCH + 16 * n * model.width, 8e3, 0
    for _ in plan.published_designs(config):
        planted = config["planted"]
        size = max(0.1, planted["items"] * planted["width"] / (748 * 128))
        yield "probe_planted", TORCH + PLANTED_SEED * planted["seeds"] * size, 1.2 * MEMORY_TORCH, 57e3, 0
    yield from _toys(config)
    yield from _frozen_embeddings(config)
    yield from _rare_features(config)
    yield from _explanations(config, shapes, n_texts)
    yield from _neurons(config, shapes, n_texts)
    cells = sum(1 for _ in plan.units(config))
    yield "gather_audit", TABLES, MEMORY_TABLES, 10e3, 0
    yield "gather_behaviour", TABLES, MEMORY_TABLES, 20e3, 0
    yield "gather_health", TABLES, MEMORY_TABLES, 20e3, 0
    yield "gather_probes", TABLES + 0.1 * cells, MEMORY_TABLES + 12e6 * cells, 70e3 * cells, 0
    yield "gather_geometry", TABLES + 0.1 * cells, MEMORY_TABLES + 12e6 * cells, 50e3 * cells, 0
    for table in ("capacity", "use", *plan.optional_tables(config)):
        yield f"gather_{table}", TABLES, MEMORY_TABLES, 50e3, 0
    if plan.models_from(config, "hub"):
        yield "gather_revisions", TABLES, MEMORY_TABLES, 20e3, 0
    yield "summarise_training", TABLES + 0.1 * cells, MEMORY_TABLES + 12e6 * cells, 20e3, 0
    yield "judge_targets", TABLES + 0.1 * cells, MEMORY_TABLES + 12e6 * cells, 20e3, 0
    yield "judge_claims", TORCH + 0.1 * cells, MEMORY_TABLES + 12e6 * cells, 40e3, 0
    for figure in plan.figures(config):
        yield f"draw_{figure.rpartition('/')[2]}", NOTEBOOK, MEMORY_NOTEBOOK, FIGURE, 0
    for _ in config["run"]["toys"]:
        yield "draw_superposition", NOTEBOOK, MEMORY_NOTEBOOK, FIGURE, 0


def _explanations(config: Mapping[str, Any], shapes: Mapping[str, Shape], n_texts: Mapping[str, int]) -> Iterator[Job]:
    """Geometry, capacity, mechanisms and swaps."""
    nothing = Shape(0, 0, 0.0, 0.0)
    reading = config["activations"]

    def sized(unit: plan.Unit) -> tuple[Shape, float, float, float]:
        """Shape, work beside that of the default model, and memory of a job on activations and on the model."""
        model, n = shapes.get(unit.model, nothing), n_texts[unit.design]
        matrix = MEMORY_TORCH + 160 * n * model.width
        weights = MEMORY_MODEL + 1.3 * 4 * model.parameters + 200 * reading["token_budget"] * max(model.width, 1)
        return model, max(0.25, n * model.width / (1536 * 128)), matrix, weights

    for unit in plan.units(config):
        model, size, memory, _ = sized(unit)
        levels = len(reading.get("layers", range(model.layers + 1)))
        yield "measure_geometry", TORCH + GEOMETRY_MATRIX * _passes(config, unit)[1] * levels * size, memory, 50e3, 0
    for unit in plan.capacity_units(config):
        _, size, memory, _ = sized(unit)
        seconds = CAPACITY if unit.weights == plan.TRAINED else CAPACITY_OF_A_RUNG
        yield "probe_capacity", TORCH + seconds * size, memory, 40e3, 0
    for unit in plan.used_units(config):
        model, _, _, memory = sized(unit)
        moves = 2 + 2 * config["use"]["nulls"] + 2 * config["use"]["beside"]
        layers = 1 if config["use"]["layers"] == "middle" else len(config["use"]["layers"])
        # Of an item one text for each of the 8 cells of three factors, and from the swapped layer on.
        asked = 2 * moves * config["use"]["items"] * 8 * TOKENS_AFTER * SWAPPED * len(reading["positions"]) * layers
        yield "swap_features", MODEL + model.blocks * asked / _rate(config, model), memory, 50e3, 0
    with_dictionaries = set(plan.dictionary_units(config))
    for unit in plan.steered_units(config):
        model, size, _, memory = sized(unit)
        seconds = STEERED if unit.revision in plan.control_revisions(config, unit.model) else DETECTED
        # Doses are a batch: it holds several copies of what a pass does.
        seconds *= max(1, model.blocks / BLOCKS) * _doses(config, learned=unit in with_dictionaries)
        yield "steer_features", MODEL + seconds, 1.6 * memory, 150e3, 0
    for unit in plan.interference_units(config):
        model, size, _, memory = sized(unit)
        yield "measure_interference", MODEL + INTERFERENCE * size * max(1, model.blocks / BLOCKS), memory, 40e3, 0
    for unit in plan.ablation_units(config):
        model, size, _, memory = sized(unit)
        share = config["ablation"]["items"] * 16 / max(1, n_texts[unit.design])
        yield (
            "ablate_components",
            MODEL + ABLATION * min(1, share) * size * max(1, model.blocks / BLOCKS),
            memory,
            60e3,
            0,
        )

    settings = config["dictionaries"]
    for unit in plan.dictionary_units(config):
        model, size, _, memory = sized(unit)
        layers = _layers_of_dictionaries(settings, model)
        learned = sum(settings["sizes"]) * model.width * len(settings["k"]) * (settings["seeds"] + 1)
        work = DICTIONARY_STEP * settings["steps"] * settings["batch"] / 1024 * learned * model.width / (1536 * 128)
        disk = 8 * learned * model.width * layers
        yield "train_dictionaries", MODEL + work * layers * len(settings["inputs"]), memory, disk, 0
        if unit.weights == plan.TRAINED:
            kinds = 1 + len(settings["rungs"])
            layers += len(plan.pretrained(config, unit.model))
            seconds = DICTIONARY_SCORES * kinds * layers * max(1, model.blocks / BLOCKS) * settings["items"] / 12
            yield "measure_dictionaries", MODEL + seconds, memory, 300e3, 0
    for name in plan.pretrained(config):
        entry = settings["pretrained"][name]
        stored = 8 * PUBLISHED * shapes.get(entry["model"], nothing).width ** 2
        fetched = stored if entry["source"] == "hub" else 0
        seconds = 1 + LIGHT + stored / HASHED_A_SECOND + fetched / FETCHED_A_SECOND
        yield "register_dictionary", seconds, MEMORY_LIGHT, 2e3 + fetched, fetched


def _layers_of_dictionaries(settings: Mapping[str, Any], model: Shape) -> int:
    if isinstance(settings["layers"], str):
        return 1 if settings["layers"] == "middle" else model.layers + 1
    return len(settings["layers"])


def _doses(config: Mapping[str, Any], *, learned: bool) -> float:
    """Directions, coefficients, positions and texts that are steered, as a share of the default's; with dictionaries two
    more directions."""
    settings = config["steering"]
    tried = len(settings["coefficients"]) * (
        len(settings["positions"]) * settings["choose_items"] * 3 + settings["report_items"]
    )
    return (len(settings["directions"]) + 2 * learned) / 14 * tried / (7 * (2 * 4 * 3 + 12))


def _neurons(config: Mapping[str, Any], shapes: Mapping[str, Shape], n_texts: Mapping[str, int]) -> Iterator[Job]:
    """Embedding matrices, single neurons and layers."""
    nothing = Shape(0, 0, 0.0, 0.0)
    budget = config["activations"]["token_budget"]

    def sized(name: str) -> tuple[float, float]:
        """Work beside that of the default model, and memory of a job on the model."""
        model = shapes.get(name, nothing)
        weights = MEMORY_MODEL + 1.3 * 4 * model.parameters + 200 * budget * max(model.width, 1)
        return max(1.0, model.blocks / BLOCKS), weights

    for name in plan.opened_models(config):
        size, memory = sized(name)
        matrices = len(revisions(config["models"][name])) + 3 * config["embedding"]["seeds"]
        yield "measure_embedding", MODEL + EMBEDDING_MATRIX * matrices * size, memory, 60e3, 0
    for unit in plan.neuron_units(config):
        size, memory = sized(unit.model)
        share = min(1.0, config["neurons"]["items"] * 16 / max(1, n_texts[unit.design])) * n_texts[unit.design] / 768
        yield "attribute_neurons", MODEL + SOURCES * share * size, 1.2 * memory, 40e3, 0
        yield "read_layers", MODEL + LAYERS * share * size, memory, 30e3, 0
    for unit in plan.sparse_units(config):
        size, memory = sized(unit.model)
        seconds = SPARSE if unit.weights == plan.TRAINED else SPARSE_OF_A_RUNG * config["neurons"]["seeds"]
        probes = len(config["neurons"]["k"]) * len(config["neurons"]["rankings"]) / 36
        yield "probe_neurons", MODEL + seconds * probes * size, memory, 60e3, 0


def _checkpoints(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Iterator[Job]:
    for name in config["run"]["models"]:
        model = config["models"][name]
        size = shapes.get(name, Shape(0, 0, 0.0, 0.0))
        steps = revisions(model)
        if model["source"] == "train":
            recipe = model["training"]
            operations = 6 * size.parameters * recipe["steps"] * recipe["batch"] * TOKENS_OF_LINE
            memory = MEMORY_MODEL + 16 * size.parameters + 400 * recipe["batch"] * TOKENS_OF_LINE * size.width
            yield "train_model", MODEL + operations / _rate(config, size), memory, len(steps) * size.stored, 0
        if model["source"] == "hub":
            yield "audit_revisions", 1 + TABLES + ASKED * len(steps), MEMORY_TABLES, 20e3, 0
        for _ in steps:
            hashing = size.stored / HASHED_A_SECOND
            if model["source"] == "train":
                yield "register_trained", LIGHT + hashing, MEMORY_LIGHT, 8e3, 0
            elif model["source"] == "directory":
                yield "register_directory", LIGHT + 4 * size.parameters / HASHED_A_SECOND, MEMORY_LIGHT, 8e3, 0
            else:
                yield "resolve_revision", 1 + LIGHT, MEMORY_LIGHT, 8e3, 0
                fetching = size.stored / FETCHED_A_SECOND
                yield "download_revision", 1 + LIGHT + hashing + fetching, MEMORY_LIGHT, size.stored, size.stored


def _toys(config: Mapping[str, Any]) -> Iterator[Job]:
    if not config["run"]["toys"]:
        return
    sweeps = config["superposition"]
    trained, built, first = sweeps["trained"], sweeps["constructed"], sweeps["genericity"]
    copied, learned = sweeps["redundancy"], sweeps["geometry"]
    cells = 1 + sum(len(trained[key]) for key in ("m", "d", "s", "depth"))
    shapes = len(learned["densities"]) * len(learned["data"]) + len(learned["sizes"])
    work = {
        "trained": ("train_toys", cells * trained["networks"] * trained["steps"]),
        "constructed": ("construct_toys", len(built["universal"]["widths"]) * built["universal"]["networks"] / 5),
        "genericity": ("compare_first_layers", first["indicator"]["networks"]),
        "redundancy": ("sweep_redundancy", len(copied["cells"]) * copied["networks"]),
        "geometry": ("learn_geometry", shapes * learned["networks"] * learned["steps"]),
    }
    for toy in config["run"]["toys"]:
        rule, units = work[toy]
        yield rule, TORCH + TOY_SECONDS[toy] * units, 1.2 * MEMORY_TORCH, 30e3, 0
    yield "gather_superposition", 1 + TABLES, 1.4 * MEMORY_TABLES, 60e3, 0


def _frozen_embeddings(config: Mapping[str, Any]) -> Iterator[Job]:
    """A job a seed: every kind and its trainable twin, tied and untied, and single rows made random."""
    kinds = config["run"]["frozen_embeddings"]
    if not kinds:
        return
    settings = config["frozen_embeddings"]
    size, recipe = settings["architecture"], settings["training"]
    one = _shape(size["layers"], size["width"], VOCABULARY, tied=False, bytes_each=4)
    memory = MEMORY_MODEL + 16 * one.parameters + 400 * recipe["batch"] * TOKENS_OF_LINE * one.width
    rows = settings["rows"]
    lines = recipe["batch"] * ((1 + len(kinds)) * recipe["steps"] + (1 + rows) * settings["finetune"])
    # A pass forwards is a third of a step.
    lines += HELD_OUT_LINES / 3 * (2 + len(kinds) + 2 * rows)
    operations = 2 * lines * 6 * one.parameters * TOKENS_OF_LINE
    for _ in plan.frozen_seeds(config):
        yield "train_frozen_embeddings", MODEL + operations / _rate(config, one), memory, 15e3, 0
    yield "gather_frozen_embeddings", 1 + TABLES, 1.4 * MEMORY_TABLES, 30e3, 0


def _rare_features(config: Mapping[str, Any]) -> Iterator[Job]:
    """One job: every seed, number of rows and dictionary."""
    names = config["run"]["rare_features"]
    if not names:
        return
    settings = config["rare_features"]
    cells = settings["seeds"] * len(settings["rows"])
    trained = cells * settings["steps"] * settings["batch"] / 256 * settings["size"] * settings["width"] / (160 * 32)
    separated = settings["seeds"] * sum(settings["rows"]) * (settings["width"] / 32) ** 2
    seconds = RARE_STEP * trained * ("sae" in names) + RARE_ROW * separated * ("ica" in names)
    memory = 1.2 * MEMORY_TORCH + 12 * max(settings["rows"]) * settings["width"]
    yield "plant_rare_features", TORCH + seconds, memory, 60e3, 0


def _passes(config: Mapping[str, Any], unit: plan.Unit) -> tuple[int, int]:
    """Forward passes over the texts of one cell, and the activation matrices of each layer that it keeps."""
    reading, rungs = config["activations"], config["controls"]
    if unit.weights == plan.TRAINED:
        return len(reading["bos"]), len(reading["bos"]) * len(reading["positions"])
    units = len(rungs["embeddings"]) * rungs["seeds"]
    return units, units * len(reading["positions"])


def _rate(config: Mapping[str, Any], model: Shape) -> float:
    if config["device"] == "cuda":
        return CUDA_RATE
    return CPU_RATE_WIDE if model.width >= WIDE else CPU_RATE


def _shape(layers: int, width: int, vocabulary: int, *, tied: bool, bytes_each: int) -> Shape:
    parameters = 12 * layers * width**2 + vocabulary * width * (1 if tied else 2)
    return Shape(layers, width, float(parameters), float(bytes_each * parameters))


def _rows(path: Path) -> int:
    if not path.is_file():
        return 1000
    with open(path, "rb") as file:
        return max(0, sum(1 for _ in file) - 1)


def _time(seconds: float) -> str:
    if seconds < 99.5:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5940:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def _size(size: float) -> str:
    power = min(max(math.floor(math.log10(max(size, 1)) / 3), 1), 4)
    value = size / 1000**power
    return "-" if value < 0.05 else f"{value:.{0 if value >= 10 else 1}f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
