"""Which jobs an experiment consists of: revisions, weights and designs, known before anything runs.

Only the Snakefile imports this module; no script does, so that an edit here reruns nothing that is finished.
Revisions come from the configuration alone (a list, or a named schedule), never from a query of the hub: the
graph of jobs is the same on a machine without a network.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from counterprobe.progress import UserError
from counterprobe.revisions import revisions

TRAINED = "trained"


@dataclass(frozen=True)
class Unit:
    """One cell of the experiment: a model at a revision, under one kind of weights, on one design."""

    model: str
    revision: str
    weights: str
    design: str


def control_revisions(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """The revisions to which the ladder of randomised weights and the costly label controls apply."""
    available = revisions(config["models"][model])
    chosen = config["controls"]["revisions"]
    if chosen == "last":
        return available[-1:]
    missing = [revision for revision in chosen if revision not in available]
    if missing:
        raise UserError(
            f"config, controls.revisions: {model} has no revision {missing[0]}; it has {available[0]} to {available[-1]}"
        )
    return tuple(chosen)


def units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """Every cell whose activations are read and probed.

    Designs of `run.last_only` are read at the revisions of the ladder only, under trained weights and its first rung.
    """
    run = config["run"]
    for model in run["models"]:
        every = revisions(config["models"][model])
        controlled = control_revisions(config, model)
        for design in designs_of(config, model):
            for revision in every:
                if design not in run["last_only"] or revision in controlled:
                    yield Unit(model, revision, TRAINED, design)
            rungs = rungs_of(config, model)
            rungs = rungs[:1] if design in run["last_only"] else rungs
            for revision in controlled:
                for rung in rungs:
                    yield Unit(model, revision, rung, design)


def controlled_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The cells that also get label controls, surrogates and erasure: trained weights at the controlled revisions."""
    for unit in units(config):
        controlled = unit.revision in control_revisions(config, unit.model)
        if controlled and unit.weights == TRAINED and unit.design not in config["run"]["last_only"]:
            yield unit


def capacity_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The cells that are read with probes of growing capacity: every kind of weights at the controlled revisions."""
    for unit in units(config):
        controlled = unit.revision in control_revisions(config, unit.model)
        if controlled and unit.design not in config["run"]["last_only"]:
            yield unit


def rungs_of(config: Mapping[str, Any], model: str) -> list[str]:
    """The rungs of the ladder that a model is held against: those of `run.ladders`, or all of `run.controls`."""
    chosen = config["run"]["ladders"].get(model, config["run"]["controls"])
    return [rung for rung in config["run"]["controls"] if rung in chosen]


def used_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The cells in which features are swapped and judged: trained weights that have a ladder to be held against."""
    return controlled_units(config)


def designs_of(config: Mapping[str, Any], model: str) -> list[str]:
    """The designs of this run that a model reads: those of `run.reads`, or all."""
    chosen = config["run"]["reads"].get(model, config["run"]["designs"])
    return [name for name in config["run"]["designs"] if name in chosen]


def randomised_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The cells that are compared with the trained model of the same revision."""
    return (unit for unit in units(config) if unit.weights != TRAINED)


def answering_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The cells whose model is asked for its own answers: generated texts have a continuation that is right."""
    for unit in units(config):
        design = config["designs"][unit.design]
        if unit.weights == TRAINED and design["source"] == "statements" and design["layout"] == "factorial":
            yield unit


def published_designs(config: Mapping[str, Any]) -> list[str]:
    """Designs that are also split as published, and get the planted representation beside them."""
    return sorted(name for name in config["run"]["designs"] if "published" in config["designs"][name]["protocols"])


def probe_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One of all verdicts, and those of probes and geometry as model/design/name."""
    yield "verdicts"
    answering = {unit.design for unit in answering_units(config)}
    for model in config["run"]["models"]:
        for design in designs_of(config, model):
            if design in published_designs(config):
                yield f"{model}/{design}/leak"
            if design not in config["run"]["last_only"]:
                yield f"{model}/{design}/layers_by_step"
                yield f"{model}/{design}/geometry"
                yield f"{model}/{design}/capacity"
                if config["run"]["controls"]:
                    yield f"{model}/{design}/ladder"
                if design in answering:
                    yield f"{model}/{design}/needed"


def models_from(config: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Models of this run that come from one source: train, directory or hub."""
    return tuple(model for model in config["run"]["models"] if config["models"][model]["source"] == source)


# --- mechanisms ---------------------------------------------------------------------------------------------


def mechanism_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Tables of `run.mechanisms`."""
    return tuple(config["run"]["mechanisms"])


def interference_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The controlled cells, and the same cells under the rungs that `interference.rungs` lists."""
    if "interference" in config["run"]["mechanisms"]:
        for unit in controlled_units(config):
            for weights in (TRAINED, *config["interference"]["rungs"]):
                yield replace(unit, weights=weights)


def ablation_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """Trained weights at the controlled revisions."""
    if "ablation" in config["run"]["mechanisms"]:
        yield from controlled_units(config)


def mechanism_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One figure for every model and design of which both tables are made."""
    measured = {(unit.model, unit.design) for unit in interference_units(config)}
    for model, design in sorted(measured & {(unit.model, unit.design) for unit in ablation_units(config)}):
        yield f"{model}/{design}/mechanisms"


# --- steering -----------------------------------------------------------------------------------------------


def steered_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """Trained weights of the models of `run.steering`, at the last revisions and those of the ladder, on the designs
    that have answers: generated ones, and those with continuations."""
    for model in config["run"]["models"]:
        if model not in config["run"]["steering"]:
            continue
        every = revisions(config["models"][model])
        chosen = {*every[-config["steering"]["revisions"] :], *control_revisions(config, model)}
        for name in designs_of(config, model):
            design = config["designs"][name]
            answers = design["source"] == "statements" and design["layout"] == "factorial"
            if name not in config["run"]["last_only"] and (answers or name in config["steering"]["continuations"]):
                yield from (Unit(model, revision, TRAINED, name) for revision in every if revision in chosen)


def steering_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The table of steering, where anything is steered."""
    return ("steering",) if any(True for _ in steered_units(config)) else ()


def steering_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One figure for every model and design."""
    for model, design in sorted({(unit.model, unit.design) for unit in steered_units(config)}):
        yield f"{model}/{design}/steering"


# --- embedding and neurons ----------------------------------------------------------------------------------


def opened_models(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Models of this run whose embedding matrix, neurons and layers are looked at one by one."""
    return tuple(model for model in config["run"]["models"] if model in config["run"]["neurons"])


def neuron_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """Trained weights of these models at the controlled revisions."""
    return (unit for unit in controlled_units(config) if unit.model in opened_models(config))


def sparse_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The same cells, and the same under the rungs that `neurons.rungs` lists: what few neurons tell."""
    for unit in neuron_units(config):
        for weights in (TRAINED, *config["neurons"]["rungs"]):
            yield replace(unit, weights=weights)


def neuron_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Tables of `run.neurons`."""
    return ("embedding", "neurons") if opened_models(config) else ()


def neuron_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One figure of the embedding a model; of its neurons and of its layers, one a model and design."""
    for model in opened_models(config):
        yield f"{model}/embedding"
    for model, design in sorted({(unit.model, unit.design) for unit in neuron_units(config)}):
        yield f"{model}/{design}/neurons"
        yield f"{model}/{design}/layers"


def frozen_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The table of models trained around embeddings that never move, where there are any."""
    return ("frozen_embeddings",) if config["run"]["frozen_embeddings"] else ()


def frozen_seeds(config: Mapping[str, Any]) -> range:
    """The seeds under which they are trained, one job each."""
    settings = config["frozen_embeddings"]
    return range(settings["seed"], settings["seed"] + settings["seeds"])


def frozen_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One figure of all of them."""
    yield from frozen_tables(config)


# --- dictionaries -------------------------------------------------------------------------------------------


def dictionary_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The controlled cells of the models that get dictionaries, and the same cells under `dictionaries.rungs`."""
    for unit in controlled_units(config):
        if unit.model in config["run"]["dictionaries"]:
            for weights in (TRAINED, *config["dictionaries"]["rungs"]):
                yield replace(unit, weights=weights)


def pretrained(config: Mapping[str, Any], model: str | None = None) -> tuple[str, ...]:
    """Dictionaries that others trained for a model that gets dictionaries, or for any such model."""
    read = {unit.model for unit in dictionary_units(config)}
    listed = config["dictionaries"]["pretrained"].items()
    return tuple(name for name, entry in listed if entry["model"] in read and model in (None, entry["model"]))


def dictionary_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """None where no model gets dictionaries."""
    return ("dictionaries",) if any(dictionary_units(config)) else ()


def dictionary_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """Two for every model and design that has dictionaries."""
    for model, design in sorted({(unit.model, unit.design) for unit in dictionary_units(config)}):
        yield f"{model}/{design}/dictionaries"
        yield f"{model}/{design}/perturbations"


def planted_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The table of dictionaries of planted features, where there are any."""
    return ("rare_features",) if config["run"]["rare_features"] else ()


def planted_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """One figure of all of them."""
    yield from planted_tables(config)


# --- all of it ----------------------------------------------------------------------------------------------


def optional_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Tables that `run` can leave out."""
    kinds = (mechanism_tables, steering_tables, neuron_tables, dictionary_tables)
    return tuple(name for kind in kinds for name in kind(config))


def figures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The figures of an experiment, but for those of the toys."""
    of_models = (probe_figures, mechanism_figures, steering_figures, neuron_figures)
    kinds = (*of_models, frozen_figures, dictionary_figures, planted_figures)
    return tuple(name for kind in kinds for name in kind(config))
