"""Activations of one cell of the experiment: which weights, which texts, which read positions.

Trained weights are read at every configured position, with and without BOS. A rung of the ladder is a recipe that is
applied in memory to the verified checkpoint; all of its seeds and embedding variants are read here, with the primary
choice of BOS, each from a fresh copy of the trained weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterprobe import (
    activations,
    checkpoints,
    designs,
    language_model,
    progress,
    tokenization,
    weight_controls,
)
from counterprobe.designs import Design
from counterprobe.progress import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAINED = "trained"


def run(
    checkpoint: str | Path,
    design: Design,
    weights: str,
    spec: Mapping[str, Any],
    folder: Path,
    *,
    device: str,
) -> dict[str, Any]:
    """Write the activations of `design` into `folder` and return what its manifest has to say of them.

    `weights` is "trained" or a rung. spec: `activations` and, for rungs, `controls` (seeds, embeddings); `design.unreadable`
    says whether texts the tokenizer cannot read are an error or are dropped with the whole couple of items they belong to.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    design = readable(design, tokenizer, spec["design"]["unreadable"])
    designs.write(design, folder / "design.parquet")
    reading = dict(spec["activations"])
    content: dict[str, Any] = {"weights": weights, "dtype": reading["dtype"], "n_texts": len(design.texts)}
    activations.clear(folder)
    if weights == TRAINED:
        model = language_model.load(source, device=device)
        activations.extract(model, tokenizer, design, reading, folder, backend=reading["backend"])
        return content
    reading |= {"bos": [reading["primary_bos"]]}
    for embeddings in spec["controls"]["embeddings"]:
        for seed in range(spec["controls"]["seeds"]):
            model = language_model.load(source, device="cpu")
            weight_controls.apply(model, weights, embeddings=embeddings, seed=seed)
            activations.extract(
                model.to(device),
                tokenizer,
                design,
                reading,
                folder / f"{embeddings}.seed{seed}",
                backend=reading["backend"],
            )
    return content


def readable(design: Design, tokenizer: "PreTrainedTokenizerFast", policy: str) -> Design:
    """The design less what the tokenizer cannot read back: an error, or dropped with the whole couple of its items.

    What is left of a balanced design is balanced; the log says how many items went.
    """
    lost = tokenization.unreadable(tokenizer, design.texts)
    if not lost:
        return design
    first = tokenization.name_of(lost[0], design.texts[lost[0]])
    if policy == "error":
        raise UserError(
            f"design '{design.name}': the tokenizer cannot read back {len(lost)} of {len(design.texts)} texts, the first "
            f"is {first}; rewrite them, or set designs.{design.name}.unreadable: drop"
        )
    left = designs.without(design, lost)
    progress.logger("extraction").warning(
        "%s: %d of %d items dropped, %d of their texts cannot be read back; the first is %s",
        design.name,
        len(design.item_names) - len(left.item_names),
        len(design.item_names),
        len(lost),
        first,
    )
    return left
