"""Does a job in a rule's own conda environment use that environment's packages and no other?

Snakemake appends its own `sys.path` to that of every script (`snakemake.script.PythonScript.generate_preamble`), so that
the script can unpickle its `snakemake` object. A package that the rule's environment lacks is then taken, in whatever
version, from the environment that runs Snakemake (https://github.com/snakemake/snakemake/issues/840): numbers change
with the host. `isolated` takes those entries out again for the length of a job, and refuses a job whose script or
library has imported from there already.

Snakemake's own modules come from the host by design, and so does what they import. Of the modules that lie outside the
environment, those that the script or the library hold a name for are refused. Others that were loaded after this library
began to load were borrowed: packages of the environment looked for what they can do without and found it (transformers
does so with pillow). They are written to the log.

Pitfalls: a module that is outside, was loaded for Snakemake, and is used by a package of the environment without the
library naming it is not seen. Nothing is looked at outside conda environments: there, Snakemake and scripts share one.

Stdlib only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from counterprobe.progress import UserError, logger

LIBRARY = "counterprobe"
# The preamble's own.
HOST = "snakemake"


@contextlib.contextmanager
def isolated(environment: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> Iterator[None]:
    """Import from `prefix` alone while the block runs, if it is a conda environment to which a host's path was added.

    Raises UserError where the script or the library has imported a module from outside: module, file, environment.
    """
    conda = environment.get("CONDA_PREFIX")
    outside = foreign_entries(sys.path, prefix)
    if not (conda and os.path.realpath(conda) == os.path.realpath(prefix) and outside):
        yield
        return
    used, borrowed = foreign_modules(sys.modules, prefix)
    if used:
        name, file = next(iter(used.items()))
        more = f" (and {len(used) - 1} more)" if len(used) > 1 else ""
        raise UserError(
            f"{name} comes from {file}{more}, not from the rule's environment {prefix}; declare its package in the "
            "rule's file of envs/"
        )
    if borrowed:
        logger("isolation").warning("not of the rule's environment, and not asked for: %s", ", ".join(borrowed))
    before = list(sys.path)
    sys.path[:] = [entry for entry in sys.path if entry not in outside]
    try:
        yield
    finally:
        sys.path[:] = before


def foreign_entries(path: Sequence[str], prefix: str) -> list[str]:
    """Folders of packages on `path` that are not in `prefix`."""
    return [entry for entry in path if _is_site(entry) and not _is_own(entry, prefix)]


def foreign_modules(modules: Mapping[str, types.ModuleType], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Top-level packages outside `prefix`, each with its file: those that the script or the library names, and those
    that were loaded with it without being named.

    `modules` is `sys.modules`: in the order in which loading began.
    """
    outside: dict[str, str] = {}
    late = set()
    begun = False
    for name, module in list(modules.items()):
        top = name.partition(".")[0]
        begun = begun or top == LIBRARY
        file = _file(module)
        if top.startswith(HOST) or file is None or _is_own(file, prefix):
            continue
        if name == top or top not in outside:
            outside[top] = file
        if begun:
            late.add(top)
    named = {
        _origin(value)
        for name, module in list(modules.items())
        if name == "__main__" or name.partition(".")[0] == LIBRARY
        for value in list(vars(module).values())
    }
    used = {top: file for top, file in outside.items() if top in named}
    return used, {top: file for top, file in outside.items() if top in late - named}


def _file(module: types.ModuleType) -> str | None:
    """Where a module lies; None for one that is built in, or that is no file's."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    folders = list(getattr(module, "__path__", None) or ())
    return str(folders[0]) if folders else None


def _origin(value: object) -> str:
    """The top-level package that a module, a class or a function is of."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""


def _is_site(entry: str) -> bool:
    return bool({"site-packages", "dist-packages"} & set(Path(entry).parts))


def _is_own(file: str, prefix: str) -> bool:
    """In `prefix`, by its name or by what its links lead to; or in no folder of packages at all."""
    if not _is_site(file):
        return True
    places = (os.path.abspath(file), os.path.realpath(file))
    roots = (os.path.abspath(prefix), os.path.realpath(prefix))
    return any(Path(place).is_relative_to(root) for place in places for root in roots)
