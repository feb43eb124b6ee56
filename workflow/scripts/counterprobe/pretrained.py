"""Dictionaries that others trained: folders in SAELens's layout, on this machine or in a repository of a hub.

    FOLDER/cfg.json, FOLDER/sae_weights.safetensors

Most published repositories hold one such folder a layer (`jbloom/GPT2-Small-SAEs-Reformatted`:
`blocks.6.hook_resid_pre`); `folder` says which. Nothing but these two files is fetched, each is compared with the hub's
checksum, and no pickle is ever read. Here nothing is known of tensors: whether a dictionary fits the model is seen where it
is used (`dictionaries.read`, `dictionaries.layer_in`).

The manifest is that of a checkpoint (source, repository, commit, files with sizes and SHA-256), so that
`checkpoints.open_checkpoint` leads back to the files and checks them again. Beside it stand the folder inside, and `centred`
where the configuration has a word on it that the file lacks: the SAEs of Bloom 2024
(https://www.lesswrong.com/posts/f9EgfLSurAiqRJySD) are for a model whose writing weights were centred, as TransformerLens
does by default, and their cfg.json does not say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterprobe import checkpoints
from counterprobe.checkpoints import PATIENCE, Patience
from counterprobe.progress import UserError

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
FILES = (CONFIG, WEIGHTS)


def register(
    settings: Mapping[str, Any],
    *,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    patience: Patience = PATIENCE,
) -> dict[str, Any]:
    """Manifest content of one entry of `dictionaries.pretrained`, its files fetched and verified if a hub has them.

    UserError for a folder or a repository that lacks either file, for weights that were cut short, and for what
    `checkpoints.list_revision` and `checkpoints.fetch` refuse.
    """
    about = {"inside": settings.get("folder", ""), "centred": settings.get("centred")}
    if settings["source"] == "directory":
        folder = Path(settings["path"]).expanduser()
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{settings['path']}: no {missing[0]}; give a folder in SAELens's layout")
        files = checkpoints.describe(folder, FILES)
        return {"source": "directory", "folder": settings["path"], "files": files, **about}
    asked = {"endpoint": endpoint, "cache_dir": cache_dir, "patience": patience}
    revision = checkpoints.resolve_hub(settings["repo"], settings["revision"], **asked)
    names = [f"{about['inside']}/{name}".lstrip("/") for name in FILES]
    listed = {file.path for file in revision.files}
    missing = [name for name in names if name not in listed]
    if missing:
        folders = sorted(path.removesuffix(CONFIG).rstrip("/") or "." for path in listed if path.endswith(CONFIG))
        advice = f"`folder` is one of {', '.join(folders[:12])}" if folders else "nothing in it is in SAELens's layout"
        raise UserError(f"{revision.label}: no {missing[0]}; {advice}")
    snapshot = checkpoints.fetch(revision, names, **asked)
    files = checkpoints.describe(snapshot, names)
    at = {"repo": revision.repo, "revision": revision.revision, "commit": revision.commit}
    return {"source": "hub", **at, "files": files, **about}
