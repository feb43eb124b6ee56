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


def figures(config: Mapping[str, Any]) -> Iterator[str]:
    """The figures of an experiment: one of all verdicts, and others as model/design/name."""
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


# --- dictionaries -------------------------------------------------------------------------------------------


def dictionary_units(config: Mapping[str, Any]) -> Iterator[Unit]:
    """The controlled cells of the models that get dictionaries, and the same cells under `dictionaries.rungs`."""
    for unit in controlled_units(config):
        if unit.model in config["run"]["dictionaries"]:
            for weights in (TRAINED, *config["dictionaries"]["rungs"]):
                yield replace(unit, weights=weights)


def dictionary_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """None where no model gets dictionaries."""
    return ("dictionaries",) if any(dictionary_units(config)) else ()


def dictionary_figures(config: Mapping[str, Any]) -> Iterator[str]:
    """Two for every model and design that has dictionaries."""
    for model, design in sorted({(unit.model, unit.design) for unit in dictionary_units(config)}):
        yield f"{model}/{design}/dictionaries"
        yield f"{model}/{design}/perturbations"
