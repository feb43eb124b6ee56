"""What a job depends on, as two short strings: a slice of the configuration and a digest of the code.

Snakemake reruns a job when its `params` change. Left alone it compares them as a set of nameless reprs (two
swapped values go unnoticed), sees neither edits in imported modules nor configuration read inside a script,
and takes 1 and 1.0 for different (issue 2212 of snakemake/snakemake and `snakemake.persistence`). So every
rule has exactly two params:

- `slice_`, the canonical JSON of those parts of the configuration that the job reads, and of no others;
- `code_digest`, one hash over the rule's script, every library module it reaches through imports, and its
  environment.

The keys of a slice are what a script reads from `job.spec`:

    template                    in the slice
    probes                      {"probes": config["probes"]}
    activations.positions       {"activations": {"positions": ...}}: as in the configuration, without its rest
    designs.{design}            {"design": config["designs"][name]}: what a wildcard picks is found under the
    models.{model}.training     {"model": {"training": ...}}         wildcard's name
    refs={"corpora": "designs.{design}.corpus"}
                                {"corpus": config["corpora"][name]}: what a definition names is found under
                                                                     the key that names it

Pitfall: imports are read from the source, so only static ones count, none after the colon of an `if` or a `try`.
`importlib.import_module` or code in `__init__.py` would escape the digest; a test forbids both. `progress`
is followed by no digest: it holds messages, never numbers. Stdlib only, for the Snakefile imports this module
before any environment exists.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

UNTRACKED = frozenset({"progress"})
# A statement on a line of its own, with its names on the same one or in parentheses.
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<origin>[\w.]+)[ \t]+)?import\b[ \t]*(?P<names>\([^)]*\)|.*)", flags=re.MULTILINE
)


def canonical(obj: Any) -> str:
    """One JSON text for everything that is equal: keys sorted, no spaces, 1.0 written as 1.

    Raises TypeError for what JSON cannot hold (sets, paths, numpy scalars: Snakemake would silently not track
    them) and ValueError for NaN and infinities.
    """
    return json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: str | bytes) -> str:
    """SHA-256 in hex; text is hashed as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def code_digest(script: str | Path, library_dir: str | Path, env: str | Path | None = None) -> str:
    """Digest of everything that a rule runs: its script or notebook, the library modules it reaches, its
    environment.

    `library_dir` is the package's own folder. Of a notebook only the source of code cells counts. Of the
    environment the YAML counts and, where there is one, the post-deploy script beside it. No path enters, so
    a moved or renamed checkout has the same digests. Raises FileNotFoundError where the script, a module or
    `env` does not exist.
    """
    library = Path(library_dir)
    script = Path(script)
    text, imported = _unit(script, library)
    parts = {"script": text}
    waiting = list(imported)
    while waiting:
        module = waiting.pop()
        if f"module {module}" in parts:
            continue
        parts[f"module {module}"], imported = _unit(library / f"{module}.py", library)
        waiting.extend(imported)
    if env is not None:
        env = Path(env)
        parts["environment"] = digest(env.read_bytes())
        post_deploy = env.with_suffix(".post-deploy.sh")
        if post_deploy.exists():
            parts["post-deploy"] = digest(post_deploy.read_bytes())
    return digest(canonical(parts))


def slice_(
    config: Mapping[str, Any],
    paths: Iterable[str],
    wildcards: Mapping[str, str] | None = None,
    refs: Mapping[str, str] | None = None,
) -> str:
    """Canonical JSON of the parts of `config` that `paths` name, keyed as the module's docstring says.

    `wildcards` fill the templates (a Snakemake `wildcards` object will do). `refs` maps a section to the
    dotted path that holds the NAME of one of its definitions; where that path is absent nothing is added.
    Raises KeyError with the dotted path for a key that the configuration does not have.
    """
    wildcards = dict(wildcards.items()) if wildcards is not None else {}
    result: dict[str, Any] = {}
    for template in paths:
        filled = _fill(template, wildcards)
        segments = template.split(".")
        picked = len(segments) > 1 and _wildcard(segments[1])
        keys = [segments[1][1:-1], *filled[2:]] if picked else filled
        _put(result, keys, _get(config, filled), template)
    for section, template in (refs or {}).items():
        try:
            name = _get(config, _fill(template, wildcards))
        except KeyError:
            continue
        _put(result, [template.split(".")[-1]], _get(config, [section, name]), template)
    return canonical(result)


def imported_modules(source: str, inside: bool, package: str) -> tuple[str, ...]:
    """Modules of `package` that a source imports anywhere, also inside functions, without the untracked ones.

    inside: whether the source is a module of the package, where a relative import counts. Looked for line by line:
    every job on a cluster reads the Snakefile anew, twice, and `ast` would take a second of each time.
    """
    found: set[str] = set()
    # Without comments first: one between parentheses may hold a parenthesis.
    for statement in IMPORT.finditer(re.sub(r"\\\n|#.*", " ", source).replace(";", "\n")):
        names = [name.split()[0] for name in statement["names"].strip("()").split(",") if name.strip()]
        origin = statement["origin"]
        if origin and inside and re.match(r"\.(?!\.)", origin):
            origin = f"{package}{origin}".rstrip(".")
        if origin == package:
            names = [f"{package}.{name}" for name in names]
        elif origin:
            names = [origin]
        found.update(name.split(".")[1] for name in names if name.startswith(f"{package}."))
    return tuple(sorted(found - UNTRACKED))


def _plain(obj: Any) -> Any:
    if obj is None or isinstance(obj, bool | str):
        return obj
    # A subclass (numpy.float64 is a float) prints like its parent but is not a builtin.
    if type(obj) is int:
        return obj
    if type(obj) is float:
        if not math.isfinite(obj):
            raise ValueError(f"{obj} has no place in a specification")
        return int(obj) if obj.is_integer() else obj
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is a {type(key).__name__}, not text; quote it in the YAML")
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, Sequence) and not isinstance(obj, bytes | bytearray):
        return [_plain(value) for value in obj]
    raise TypeError(f"{obj!r} is a {type(obj).__name__}, which JSON cannot hold")


def _wildcard(segment: str) -> bool:
    return segment.startswith("{") and segment.endswith("}")


def _fill(template: str, wildcards: Mapping[str, str]) -> list[str]:
    """Split before filling: a model may be called `pythia-2.8b`."""
    return [wildcards[part[1:-1]] if _wildcard(part) else part for part in template.split(".")]


def _get(config: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = config
    for depth, key in enumerate(keys):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(f"the configuration has no {'.'.join(keys[: depth + 1])}")
        value = value[key]
    return value


def _put(result: dict[str, Any], keys: Sequence[str], value: Any, template: str) -> None:
    """Set result[k0][k1]... = value beside what other templates have put there."""
    place = result
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    known = place.get(keys[-1])
    if isinstance(known, dict) and isinstance(value, Mapping):
        for key, inner in value.items():
            _put(known, [key], inner, template)
        return
    if known is not None and known != value:
        raise ValueError(f"{template} and another template both want the key {'.'.join(keys)}")
    place[keys[-1]] = _copy(value)


def _copy(value: Any) -> Any:
    """Mappings only: `_put` merges into them, and the user's configuration must stay as it is."""
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _unit(path: Path, library: Path) -> tuple[str, tuple[str, ...]]:
    """(digest, library modules imported) of one script, notebook or module."""
    stat = path.stat()
    return _parsed(str(path), str(library), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _parsed(path: str, library: str, mtime_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """Keyed by time and size: planning thousands of jobs reads each file once, and an edit is seen."""
    package, inside = Path(library).name, Path(path).parent == Path(library)
    data = Path(path).read_bytes()
    if path.endswith(".ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(data)["cells"] if cell["cell_type"] == "code"]
        # Magics (%matplotlib inline) are no Python; they import nothing of ours.
        source = "\n".join(
            line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))
        )
        return digest(canonical(cells)), imported_modules(source, inside, package)
    return digest(data), imported_modules(data.decode(), inside, package)
