"""Every dictionary of one model under one kind of weights, fitted to the activations of the tokens of one design.

Tokens of a design's texts (all of them, not the read positions alone), or of equally long sequences of random tokens
(`inputs`: design, random_tokens), at each layer of `dictionaries.layers`. A share of the couples of items is held out: no
dictionary sees their texts. For every size, k and seed a trained SAE, one whose decoder stays random, and random rows; for
every k the principal components, independent components and neurons. Random tokens get SAEs and random rows only, for
they answer one question: what an SAE finds where nothing depends on context (claim C31).

Dictionaries that others trained (`dictionaries.pretrained`) stand beside these at the layer that their file names, as
pretrained:NAME with their name in the configuration. One without a fixed number of live latents (ReLU, JumpReLU) gets as
its k the number counted on texts that are not scored, under trained weights, and so does the random dictionary that it is
held against.

Files: layer_{l}.{inputs}.{kind}.size{h}.k{k}.seed{s}/ in SAELens's layout (module `dictionaries`).

Pitfalls: rungs are read with their embeddings kept, one draw each. Texts of one design share their beginnings, so that the
distinct activations are fewer than the tokens; the log says how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import (
    checkpoints,
    dictionaries,
    dictionary_training,
    extraction,
    language_model,
    manifest,
    progress,
    replacement,
    streaming_ica,
    tokenization,
    weight_controls,
)
from counterprobe.designs import Design
from counterprobe.dictionaries import Dictionary
from counterprobe.dictionary_table import BASES, PRETRAINED, RANDOM
from counterprobe.dictionary_training import Recipe, Schedule
from counterprobe.progress import UserError
from counterprobe.replacement import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DESIGN, RANDOM_TOKENS = "design", "random_tokens"
# On which live latents are counted: a mean over hundreds of tokens.
TEXTS_COUNTED = 64
FOLDER = re.compile(
    r"layer_(?P<layer>\d+)\.(?P<inputs>[a-z_]+)\.(?P<kind>[a-z_]+)\.size(?P<size>\d+)\.k(?P<k>\d+)\.seed(?P<seed>\d+)"
)


@dataclass(frozen=True)
class Fitted:
    """A dictionary on disk: at which layer, of which tokens."""

    layer: int
    inputs: str
    dictionary: Dictionary


def open_model(checkpoint: str | Path, weights: str, *, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model under trained weights, or under the first draw of a rung with its embeddings kept."""
    source = checkpoints.open_checkpoint(checkpoint)
    model = language_model.load(source, device="cpu")
    if weights != extraction.TRAINED:
        weight_controls.apply(model, weights, embeddings="kept", seed=0)
    return model.to(device), tokenization.load_tokenizer(source)


def layers_of(requested: str | Sequence[int], depth: int) -> list[int]:
    """`middle` is half the depth, `all` every layer from the embedding on. UserError for one that is not there."""
    if requested == "middle":
        return [depth // 2]
    if requested == "all":
        return list(range(depth + 1))
    missing = [layer for layer in requested if layer > depth]
    if missing:
        raise UserError(f"dictionaries.layers: there is no layer {missing[0]}; there are 0 to {depth}")
    return list(requested)


def fit(
    checkpoint: str | Path,
    design: Design,
    weights: str,
    spec: Mapping[str, Any],
    folder: Path,
    *,
    model: str,
    device: str,
) -> dict[str, Any]:
    """Write every dictionary into `folder` and return what its manifest has to say.

    spec: `dictionaries`, `activations` (primary_bos, token_budget), `design.unreadable`. UserError for what cannot be read,
    activations that are constant, and losses that became NaN.
    """
    settings = spec["dictionaries"]
    network, tokenizer = open_model(checkpoint, weights, device=device)
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    bos, first = replacement.settings_of(spec)
    seen = ~replacement.split_texts(design, settings["held_out"], settings["seed"])
    content: dict[str, Any] = {"weights": weights, "n_texts": int(seen.sum())}
    for inputs in settings["inputs"]:
        texts = batches(tokenizer, design, network, spec, inputs, np.flatnonzero(seen))
        for layer in layers_of(settings["layers"], network.config.num_hidden_layers):
            tokens = replacement.read(network, texts, layer, first=first)
            distinct = len(torch.unique(tokens.x, dim=0))
            progress.logger("dictionaries").info(
                "%s, layer %d, %s: %d tokens, %d distinct", design.name, layer, inputs, len(tokens.x), distinct
            )
            for made in of_tokens(tokens, settings, learned_only=inputs == RANDOM_TOKENS):
                name = f"layer_{layer}.{inputs}.{made.name}.size{made.size}.k{made.k}.seed{made.seed}"
                dictionaries.write(made, folder / name, model=model, layer=layer, bos=bos)
    return content


def batches(
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    network: PreTrainedModel,
    spec: Mapping[str, Any],
    inputs: str,
    chosen: np.ndarray,
) -> list[replacement.Batch]:
    """The chosen texts of a design, or random tokens in their place; `texts` of a batch are places in the design."""
    bos, _ = replacement.settings_of(spec)
    made = replacement.batches(
        tokenizer,
        [design.texts[index] for index in chosen],
        bos=bos,
        context=network.config.max_position_embeddings,
        token_budget=spec["activations"]["token_budget"],
        shuffle=np.random.default_rng([spec["dictionaries"]["seed"], 3]) if inputs == RANDOM_TOKENS else None,
    )
    return [replace(batch, texts=chosen[batch.texts]) for batch in made]


def of_tokens(tokens: Tokens, settings: Mapping[str, Any], *, learned_only: bool) -> Iterator[Dictionary]:
    """All kinds; with `learned_only`, SAEs and their random counterparts."""
    x = tokens.x
    sizes = [size * x.shape[1] for size in settings["sizes"]]
    seeds, every_k = range(settings["seeds"]), settings["k"]
    # The seed of a dictionary is its own whatever else is trained beside it.
    grid = [(size, k, seed) for size in sizes for k in every_k for seed in seeds]
    recipes = [Recipe(size, k, seed) for size, k, seed in grid]
    if not learned_only:
        recipes += [Recipe(size, k, 0, frozen=True) for size in sizes for k in every_k]
    schedule = Schedule(settings["steps"], settings["batch"], settings["learning_rate"])
    yield from (
        made.to("cpu") for made in dictionary_training.train(x, recipes, schedule, seed=settings["seed"]).dictionaries
    )
    measured = streaming_ica.moments(streaming_ica.chunked(x))
    mean, covariance = measured.mean.float().cpu(), measured.covariance.cpu()
    yield from (dictionaries.random_decoder(mean, size, k, seed=seed) for size, k, seed in grid)
    if learned_only:
        return
    separated = streaming_ica.fit(
        streaming_ica.chunked(x), iterations=settings["ica_iterations"], seed=settings["seed"]
    )
    for k in every_k:
        yield dictionaries.principal_components(mean, covariance, k)
        yield dictionaries.neuron_basis(mean, k)
        yield dictionaries.from_basis(
            "ica", separated.unmixing.cpu(), separated.mixing.T.cpu(), mean, k, note=separated.note
        )


def published(
    path: str | Path,
    name: str,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    spec: Mapping[str, Any],
) -> Fitted:
    """A dictionary that others trained, from its manifest (module `pretrained`), for the trained model.

    UserError for files that changed, and for a width or a hook point that is not the model's.
    """
    content = manifest.read(path)["content"]
    folder = checkpoints.open_checkpoint(path) / content["inside"]
    layer = dictionaries.layer_in(folder, network.config.num_hidden_layers)
    width = network.get_input_embeddings().weight.shape[1]
    read = dictionaries.read(folder, width=width, layer=layer)
    centred = read.centred if content["centred"] is None else content["centred"]
    read = replace(read, name=PRETRAINED + name, seed=0, centred=centred)
    if read.activation == "topk":
        return Fitted(layer, DESIGN, read)
    settings = spec["dictionaries"]
    seen = np.flatnonzero(~replacement.split_texts(design, settings["held_out"], settings["seed"]))
    texts = batches(tokenizer, design, network, spec, DESIGN, seen[:: -(-len(seen) // TEXTS_COUNTED)])
    _, first = replacement.settings_of(spec)
    x = replacement.read(network, texts, layer, first=first).x
    read = read.to(x.device)
    live = sum(int((read.encode(part) > 0).sum()) for part in x.split(dictionaries.ROWS_AT_A_TIME)) / len(x)
    if live < 0.5:
        raise UserError(
            f"{folder}: {live:.2f} latents fire on a token of '{design.name}'; check `centred` and the model"
        )
    return Fitted(layer, DESIGN, replace(read, k=round(live)))


def with_random(those: Sequence[Dictionary], mean: Float[Tensor, " d"]) -> list[Dictionary]:
    """These, and random rows for each size and k that has none yet: what a dictionary of others is held against."""
    known = {(one.size, one.k) for one in those if one.name == RANDOM}
    lacking = sorted({(one.size, one.k) for one in those if one.name not in BASES} - known)
    made = [dictionaries.random_decoder(mean.float().cpu(), size, k, seed=0) for size, k in lacking]
    return [*those, *(one.to(mean.device) for one in made)]


def open_folder(path: str | Path, *, width: int) -> list[Fitted]:
    """The dictionaries that a manifest lists, after comparing every file with it."""
    listed = manifest.verify(path)["content"]["files"]
    found = []
    for name in sorted({file.partition("/")[0] for file in listed}):
        parts = FOLDER.fullmatch(name)
        if not parts:
            raise UserError(f"{path}: lists {name}, which is no dictionary; delete the folder and run again")
        layer = int(parts["layer"])
        dictionary = dictionaries.read(Path(path).parent / name, width=width, layer=layer)
        found.append(Fitted(layer, parts["inputs"], dictionary))
    return found
