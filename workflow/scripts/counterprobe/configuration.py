"""Check an experiment's configuration before anything is planned, and say what is wrong in the user's terms.

The schema, workflow/schemas/config.schema.yaml, is the one description of the configuration: it documents
every key, holds the defaults and forbids unknown keys. What a schema cannot say (that `run.models` names a
defined model) is checked here. Each problem becomes one line with the file, the line and the dotted path:

    config.yaml line 31, probes.penaltys: unknown key; did you mean 'penalties'?

Pitfall: Snakemake reads and merges the configuration files before any code of ours runs. Line numbers
therefore come from a second reading of the same files, the later file winning; a value given on the command
line has no line.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterprobe.progress import UserError, nearest

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.yaml"

# Factors that the built-in statements cross, by layout (see the modules `statements` and `designs`).
FACTORS = {
    "factorial": ("speaker", "negated", "match", "suffix"),
    "rax": ("speaker", "negated", "match"),
}
POSITIONS = ("period", "before_period", "last")

KINDS = {
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "empty",
}

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """Where a key stands, and its text if it is a scalar."""

    file: str
    line: int
    text: str | None


def validate(config: Mapping[str, Any], path_hint: str | Path | Sequence[str | Path] = "config.yaml") -> dict[str, Any]:
    """Check `config` and return a copy of it in which every optional key has its default.

    `path_hint` is the file, or the files in the order in which Snakemake merged them, that errors refer to; a
    file that does not exist is merely named. Raises UserError with one line for each problem, the first ten
    of them.
    """
    files = [path_hint] if isinstance(path_hint, str | Path) else list(path_hint)
    where = _Where(load_lines(file for file in files if Path(file).exists()), str(files[-1]))
    problems = list(_schema_problems(config, where))
    if not problems:
        config = complete(config)
        problems = list(_cross_problems(config, where))
    if problems:
        problems = list(dict.fromkeys(problems))
        rest = len(problems) - 10
        raise UserError("\n".join([*problems[:10], *([f"and {rest} more"] if rest > 0 else [])]))
    return complete(config)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the schema's defaults filled in, also inside each definition."""
    return _complete(copy.deepcopy(_builtin(config)), schema())


@functools.cache
def schema() -> dict[str, Any]:
    import yaml

    # libyaml, where there is one, is ten times as quick, and each cluster job reads this again.
    return yaml.load(SCHEMA.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def load_lines(paths: Iterable[str | Path]) -> dict[Keys, Mark]:
    """The place of every key and list element in YAML files, the later file winning as in Snakemake's merge.

    Raises UserError for a file that is missing, is not YAML, or repeats a key (YAML would silently keep the
    last).
    """
    import yaml

    marks: dict[Keys, Mark] = {}
    for path in paths:
        try:
            node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError:
            raise UserError(f"{path}: no such configuration file") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{path} line {line}: not valid YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path} line 1: a configuration is a mapping of keys, such as 'experiment: NAME'")
        if node is not None:
            for keys, mark in _walk(node, (), str(path)):
                if isinstance(keys[-1], int) and keys[-1] == 0:
                    # Lists replace each other: forget the tail of a longer one.
                    for known in [k for k in marks if len(k) >= len(keys) and k[: len(keys) - 1] == keys[:-1]]:
                        del marks[known]
                marks[keys] = mark
    return marks


class _Where:
    """Words for a place in the configuration."""

    def __init__(self, marks: Mapping[Keys, Mark], fallback: str) -> None:
        self.marks = marks
        self.fallback = fallback

    def __call__(self, keys: Keys, value: Any = None) -> str:
        """`value` tells whether Snakemake was given the file's text or the command line overrode it."""
        mark = self.marks.get(keys)
        if mark is not None and isinstance(value, str) and mark.text is not None and mark.text != value:
            return f"--config, {dotted(keys)}"
        near = keys
        while mark is None and near:
            near = near[:-1]
            mark = self.marks.get(near)
        place = f"{mark.file} line {mark.line}" if mark is not None else self.fallback
        return f"{place}, {dotted(keys)}" if keys else place


def dotted(keys: Keys) -> str:
    """("run", "models", 0) -> "run.models[0]"."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _walk(node: Any, keys: Keys, file: str) -> Iterator[tuple[Keys, Mark]]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = key.value
            if name in seen:
                line = key.start_mark.line + 1
                raise UserError(f"{file} line {line}, {dotted((*keys, name))}: the key stands there twice")
            seen.add(name)
            text = value.value if isinstance(value, yaml.ScalarNode) else None
            yield (*keys, name), Mark(file, key.start_mark.line + 1, text)
            yield from _walk(value, (*keys, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            text = value.value if isinstance(value, yaml.ScalarNode) else None
            yield (*keys, index), Mark(file, value.start_mark.line + 1, text)
            yield from _walk(value, (*keys, index), file)


def _builtin(value: Any) -> Any:
    """Snakemake's configuration holds OrderedDicts and the like."""
    if isinstance(value, Mapping):
        return {key: _builtin(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_builtin(inner) for inner in value]
    return value


def _resolve(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref: "#/$defs/name"`; keys beside it (a description, a default) stay."""
    while "$ref" in node:
        target: Any = schema()
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def _variant(node: Mapping[str, Any], value: Any) -> Mapping[str, Any] | None:
    """The alternative of a `oneOf` that a value means: by its constants (`source: hub`), else by its type."""
    alternatives = [_resolve(option) for option in node["oneOf"]]
    if isinstance(value, Mapping):
        for option in alternatives:
            constants = {key: inner["const"] for key, inner in option.get("properties", {}).items() if "const" in inner}
            if constants and all(value.get(key) == constant for key, constant in constants.items()):
                return option
        alternatives = [option for option in alternatives if not _constants(option)]
    fitting = [option for option in alternatives if _is_kind(value, option.get("type"))]
    return fitting[0] if len(fitting) == 1 else None


def _constants(option: Mapping[str, Any]) -> list[str]:
    return [key for key, inner in option.get("properties", {}).items() if "const" in inner]


def _is_kind(value: Any, kind: str | None) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds = {"string": str, "integer": int, "number": (int, float), "array": list, "object": Mapping}
    return kind in kinds and isinstance(value, kinds[kind])


def _complete(value: Any, node: Mapping[str, Any]) -> Any:
    node = _resolve(node)
    if "oneOf" in node:
        option = _variant(node, value)
        return value if option is None else _complete(value, option)
    if isinstance(value, dict):
        properties = node.get("properties", {})
        for key, inner in properties.items():
            inner = _resolve(inner)
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
        rest = node.get("additionalProperties")
        for key in value:
            inner = properties.get(key, rest if isinstance(rest, Mapping) else None)
            if inner is not None:
                value[key] = _complete(value[key], inner)
    elif isinstance(value, list) and isinstance(node.get("items"), Mapping):
        value[:] = [_complete(inner, node["items"]) for inner in value]
    return value


def _schema_problems(config: Mapping[str, Any], where: _Where) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    config = _builtin(config)
    validator = Draft202012Validator(schema())
    for error in sorted(validator.iter_errors(config), key=lambda error: [str(key) for key in error.absolute_path]):
        yield from _problems(error, validator, where)


def _problems(error: Any, validator: Any, where: _Where, prefix: Keys = ()) -> Iterator[str]:
    """Our words for one finding of jsonschema; `prefix` is the place that a sub-validation started from."""
    keys: Keys = (*prefix, *error.absolute_path)
    value = error.instance
    rule, wanted, node = error.validator, error.validator_value, error.schema
    if "propertyNames" in error.absolute_schema_path:
        # jsonschema reports a name that is wrong as a value of the mapping it stands in.
        keys = (*keys, value)
    at = where(keys, value)
    if rule == "additionalProperties":
        known = list(node.get("properties", {}))
        for key in value:
            if key not in known:
                advice = nearest(str(key), known) or f"; known are {_listed(known)}"
                yield f"{where((*keys, str(key)))}: unknown key{advice}"
    elif rule == "required":
        for key in wanted:
            if key not in value:
                example = _resolve(node["properties"][key]).get("description", "").split(".")[0]
                yield f"{where((*keys, key))}: the key is missing" + (f" ({example})" if example else "")
    elif rule == "type":
        yield f"{at}: {_shown(value)} is not {_kind(wanted)}{_yaml_advice(value, wanted)}"
    elif rule in ("enum", "const"):
        allowed = [str(option) for option in (wanted if rule == "enum" else [wanted])]
        # Of two, both are named: for `gpu`, cpu is the nearest word and the wrong advice.
        near = nearest(str(value), allowed) if len(allowed) > 2 else ""
        advice = near or f"; choose {_listed(allowed, 'or')}"
        yield f"{at}: {_shown(value)} is not a choice{advice}"
    elif rule == "oneOf":
        yield from _oneof_problems(error, validator, where, keys)
    elif rule == "pattern":
        yield f"{at}: {_shown(value)} {node.get('x-must', f'does not match {wanted}')}"
    elif rule in _LIMITS:
        yield f"{at}: {_LIMITS[rule].format(value=_shown(value), wanted=wanted)}"
    else:
        yield f"{at}: {error.message}"


_LIMITS = {
    "minimum": "{value} is below {wanted}, the smallest that makes sense",
    "maximum": "{value} is above {wanted}, the largest that makes sense",
    "exclusiveMinimum": "{value} must be above {wanted}",
    "exclusiveMaximum": "{value} must be below {wanted}",
    "minItems": "{value} has too few entries; at least {wanted}",
    "maxItems": "{value} has too many entries; at most {wanted}",
    "minLength": "the text is empty",
    "minProperties": "it is empty; at least {wanted} entry",
    "uniqueItems": "{value} names the same thing twice",
}


def _oneof_problems(error: Any, validator: Any, where: _Where, keys: Keys) -> Iterator[str]:
    value = error.instance
    option = _variant(error.schema, value)
    if option is not None:
        for inner in validator.evolve(schema={**option, "$defs": schema()["$defs"]}).iter_errors(value):
            yield from _problems(inner, validator, where, keys)
        return
    options = [_resolve(option) for option in error.schema["oneOf"]]
    if isinstance(value, Mapping):
        # Which variant it should be is told by a key such as `source`, then `layout`.
        for key in dict.fromkeys(key for option in options for key in _constants(option)):
            fitting = [option["properties"][key]["const"] for option in options if key in _constants(option)]
            if key not in value:
                yield f"{where((*keys, key))}: the key is missing; choose {_listed(fitting, 'or')}"
                return
            if value[key] not in fitting:
                allowed = list(dict.fromkeys(fitting))
                advice = nearest(str(value[key]), allowed) or f"; choose {_listed(allowed, 'or')}"
                yield f"{where((*keys, key), value[key])}: {_shown(value[key])} is not a choice{advice}"
                return
            options = [o for o in options if o["properties"].get(key, {}).get("const", value[key]) == value[key]]
    allowed = [str(choice) for option in options for choice in option.get("enum", [])]
    kinds = [_kind(option["type"]) for option in options if "enum" not in option]
    advice = nearest(str(value), allowed)
    expected = _listed([*(f"'{choice}'" for choice in allowed), *kinds], "or")
    yield f"{where(keys, value)}: {_shown(value)} is not {expected}{advice}"


def _listed(words: Sequence[str], last: str = "and") -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else "none"


def _kind(wanted: str | Sequence[str]) -> str:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    return _listed([KINDS[kind] for kind in kinds], "or")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "an empty value"
    if isinstance(value, str | int | float):
        return repr(value)
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _yaml_advice(value: Any, wanted: str | Sequence[str]) -> str:
    """YAML 1.1 reads 1e-4 as text, for it lacks a point."""
    numeric = {"number", "integer"} & set([wanted] if isinstance(wanted, str) else wanted)
    if not (numeric and isinstance(value, str)):
        return ""
    if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        return f"; YAML wants a point in it: {mantissa}.0e{exponent}"
    return "; remove the quotes" if re.fullmatch(r"[+-]?\d+(\.\d*)?", value) else ""


def _cross_problems(config: Mapping[str, Any], where: _Where) -> Iterator[str]:
    """What the schema cannot say; `config` is complete and has the schema's shape."""
    run = config["run"]
    for selection, section in (
        ("models", "models"),
        ("dictionaries", "models"),
        ("designs", "designs"),
        ("last_only", "designs"),
    ):
        defined = config[section]
        for index, name in enumerate(run[selection]):
            if name not in defined:
                advice = nearest(name, defined) or f"; defined are {_listed(list(defined))}"
                yield f"{where(('run', selection, index), name)}: {name!r} is not among {section}{advice}"
    for section, named in (("models", config["models"]), ("designs", config["designs"])):
        for name, definition in named.items():
            corpus = definition.get("corpus")
            if corpus is not None and corpus not in config["corpora"]:
                advice = nearest(corpus, config["corpora"]) or f"; defined are {_listed(list(config['corpora']))}"
                yield f"{where((section, name, 'corpus'), corpus)}: {corpus!r} is not among corpora{advice}"
    corpus = config["frozen_embeddings"]["corpus"]
    if run["frozen_embeddings"] and corpus not in config["corpora"]:
        advice = nearest(corpus, config["corpora"]) or f"; defined are {_listed(list(config['corpora']))}"
        yield f"{where(('frozen_embeddings', 'corpus'), corpus)}: {corpus!r} is not among corpora{advice}"
    for section in ("reads", "ladders"):
        for name in config["run"][section]:
            if name not in config["models"]:
                advice = nearest(name, config["models"]) or f"; defined are {_listed(list(config['models']))}"
                yield f"{where(('run', section, name))}: {name!r} is not among models{advice}"
    for name, read in config["run"]["reads"].items():
        for index, design in enumerate(read):
            if design not in config["designs"]:
                advice = nearest(design, config["designs"]) or f"; defined are {_listed(list(config['designs']))}"
                yield f"{where(('run', 'reads', name, index), design)}: {design!r} is not among designs{advice}"
    for name, model in config["models"].items():
        yield from _model_problems(name, model, where)
    for name, design in config["designs"].items():
        if design["source"] == "csv":
            yield from _csv_problems(name, design, where)
        yield from _primary_problems(name, design, where)
        yield from _fold_problems(name, design, config, where)
    for name, entry in config["dictionaries"]["pretrained"].items():
        if entry["model"] not in config["models"]:
            advice = nearest(entry["model"], config["models"]) or f"; defined are {_listed(list(config['models']))}"
            at = where(("dictionaries", "pretrained", name, "model"), entry["model"])
            yield f"{at}: {entry['model']!r} is not among models{advice}"
    yield from _activation_problems(config, where)


def _activation_problems(config: Mapping[str, Any], where: _Where) -> Iterator[str]:
    activations = config["activations"]
    marks = [word for name in config["run"]["designs"] for word in config["designs"].get(name, {}).get("marks", ())]
    known = [*POSITIONS, *marks]
    for index, position in enumerate(activations["positions"]):
        if position not in known:
            advice = nearest(position, known) or f"; known are {_listed(known)}"
            at = where(("activations", "positions", index), position)
            yield f"{at}: {position!r} is no read position{advice}"
    for key, choices in (("primary_position", "positions"), ("primary_bos", "bos")):
        if activations[key] not in activations[choices]:
            shown = _shown(activations[key])
            yield f"{where(('activations', key))}: {shown} is not among activations.{choices}"


def _model_problems(name: str, model: Mapping[str, Any], where: _Where) -> Iterator[str]:
    if model["source"] == "train":
        architecture = model["architecture"]
        if architecture["width"] % architecture["heads"]:
            yield (
                f"{where(('models', name, 'architecture', 'heads'))}: "
                f"{architecture['heads']} heads do not divide a width of {architecture['width']}"
            )
        steps = model["training"]["steps"]
        listed = model["revisions"] if isinstance(model["revisions"], list) else ()
        for index, revision in enumerate(listed):
            step = re.fullmatch(r"step(0|[1-9]\d*)", revision)
            at = where(("models", name, "revisions", index), revision)
            if step is None:
                yield f"{at}: {revision!r} is no step; write step0, step8 and so on"
            elif int(step[1]) > steps:
                yield f"{at}: {revision!r} comes after the last step; training.steps is {steps}"


def factors(design: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a design definition's basic factors."""
    return tuple(design["features"]) if design["source"] == "csv" else FACTORS[design["layout"]]


def _primary_problems(name: str, design: Mapping[str, Any], where: _Where) -> Iterator[str]:
    known = factors(design)
    for index, factor in enumerate(design["primary"]):
        if factor not in known:
            advice = nearest(factor, known) or f"; its factors are {_listed(known)}"
            yield f"{where(('designs', name, 'primary', index), factor)}: {factor!r} names no factor{advice}"


def _csv_problems(name: str, design: Mapping[str, Any], where: _Where) -> Iterator[str]:
    known = list(design["features"])
    for factor in design["carriers"]:
        if factor not in known:
            advice = nearest(factor, known) or f"; the features are {_listed(known)}"
            yield f"{where(('designs', name, 'carriers', factor))}: {factor!r} names no feature{advice}"
    for word in (part for parity in design["prior"] for part in parity.split("^")):
        if word not in (*known, *design["derive"]):
            advice = nearest(word, known) or f"; the features are {_listed(known)}"
            yield f"{where(('designs', name, 'prior'))}: {word!r} names no feature{advice}"
    for alias, expression in design["derive"].items():
        keys = ("designs", name, "derive", alias)
        if alias in known:
            yield f"{where(keys)}: {alias!r} is a feature already"
        for word in (part.strip() for part in expression.split("^")):
            if word not in known:
                advice = nearest(word, known) or f"; the features are {_listed(known)}"
                yield f"{where(keys, expression)}: {word!r} names no feature{advice}"


def _fold_problems(name: str, design: Mapping[str, Any], config: Mapping[str, Any], where: _Where) -> Iterator[str]:
    """Every block of a factorial design needs a couple of items of each topic and a carrier unit."""
    inner, outer = config["probes"]["inner_folds"], config["probes"]["outer_folds"]
    unblocked = [protocol for protocol in design["protocols"] if protocol == "items" or "blocks" not in design]
    if name in config["run"]["designs"] and set(unblocked) - {"published"} and inner > outer - 1:
        yield (
            f"{where(('probes', 'inner_folds'))}: {inner} inner folds, but one of the {outer} folds "
            f"is held out and {outer - 1} remain"
        )
        return
    corpus = config["corpora"].get(design.get("corpus"))
    if corpus is not None and design.get("names", 0) > corpus["carriers"]:
        at = where(("designs", name, "names"))
        yield f"{at}: {design['names']} pairs of names, but the corpus has {corpus['carriers']}"
    blocks = design.get("blocks")
    if corpus is None or blocks is None:
        return
    at = where(("designs", name, "blocks"))
    for topic, count in corpus["topics"].items():
        if count < 2 * blocks:
            yield f"{at}: {blocks} blocks need at least {2 * blocks} {topic}; the corpus has {count}"
    if corpus["carriers"] < blocks:
        yield f"{at}: {blocks} blocks need at least as many carriers; the corpus has {corpus['carriers']}"
    if "carriers" in design["protocols"] and name in config["run"]["designs"] and inner > blocks - 1:
        yield (
            f"{where(('probes', 'inner_folds'))}: {inner} inner folds, but one of the {blocks} blocks "
            f"of {name} is held out and {blocks - 1} remain"
        )
