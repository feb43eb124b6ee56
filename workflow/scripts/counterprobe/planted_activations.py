"""Activations, and networks, of which it is known what can be read in them and what is used.

All stand on one layout: items × 16 cells of four factors, in four blocks that hold out items and carriers. Within a cell
every dimension has variance 1 in all:

    background   x = item + name + suffix word + Σ_f ± u_f / 2 + noise,    var(item) .45, var(name) = var(suffix) .15,
                 var(noise) .25, u_f ~ N(0, I): additive, with every factor far beyond reach of doubt

To it are added

    effect       ± v / 2 by the target, ‖v‖ = ‖δ‖ / 2: a pair's δ = μ11 − μ10 − μ01 + μ00 is −2 (μ₁ − μ₀)
    look_ups     [negated] u(name): each name interacts with NOT in its own way, nothing is shared by a class of names
    mixing       ± v_t / 2 for every parity t of two factors or more, v_t independent: interactions of all orders

A hand-built network computes an XOR from two of its inputs with one ReLU, a ⊕ b = a + b − 2 ReLU(a + b − 1), and writes
it along a direction of the residual stream, which its read-out reads, or does not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from counterprobe import designs
from counterprobe.designs import Design

FACTORS = ("speaker", "negated", "match", "suffix")
TARGET = "speaker^negated"
NEEDED = "negated^match"
BLOCKS = 4
SHARES = {"item": 0.45, "speaker": 0.15, "suffix": 0.15, "noise": 0.25}


def layout(items: int, carriers: int, texts: int) -> Design:
    """`items` × `texts` (a multiple of 16) in four blocks; pairs of names and of suffix words are nested in blocks."""
    block = np.arange(items) % BLOCKS
    turn = np.arange(items) // BLOCKS
    per_block = carriers // BLOCKS
    name = block + BLOCKS * (turn % per_block)
    # One step further in each round: a round meets other combinations than the one before.
    suffix = block + BLOCKS * ((turn + turn // per_block) % per_block)
    item = np.repeat(np.arange(items), texts)
    cell = np.tile(np.arange(texts) % 2 ** len(FACTORS), items)
    n = len(item)
    return Design(
        name="calibration",
        texts=tuple(f"planted {index}" for index in range(n)),
        items=item,
        item_names=tuple(f"item {index}" for index in range(items)),
        couples=item,
        strata=np.zeros(n, dtype=np.int64),
        stratum_names=("all",),
        factors={factor: (cell >> bit & 1).astype(bool) for bit, factor in enumerate(FACTORS)},
        carriers={"speaker": name[item], "suffix": suffix[item]},
        carrier_counts={"speaker": carriers, "suffix": carriers},
        blocks=block[item],
        rows=np.arange(n),
        files=np.zeros(n, dtype=np.int64),
        marks={},
        primary=("speaker", "negated"),
        needed=(NEEDED,),
        aliases={NEEDED: "truth"},
        readouts={},
    )


def background(design: Design, width: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """Additive activations, float32."""
    sd = {name: np.float32(share**0.5) for name, share in SHARES.items()}
    x = sd["noise"] * _normal(rng, len(design.texts), width)
    x += (sd["item"] * _normal(rng, len(design.item_names), width))[design.items]
    for factor in design.factors:
        by_cell = half_sign(design, factor) * _normal(rng, 1, width)
        if factor in design.carriers:
            tokens = 2 * design.carriers[factor] + design.factors[factor]
            by_cell += (sd[factor] * _normal(rng, int(tokens.max()) + 1, width))[tokens]
        x += by_cell
    return x


def effect(design: Design, target: str, direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, "n d"]:
    """± direction / 2: the classes of the target differ by `direction`."""
    return half_sign(design, target) * direction.astype(np.float32)


def look_ups(design: Design, width: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """A vector for every name, where the text is negated."""
    tokens = 2 * design.carriers["speaker"] + design.factors["speaker"]
    return design.factors["negated"][:, None] * _normal(rng, int(tokens.max()) + 1, width)[tokens]


def mixing(design: Design, width: int, length: float, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """Every parity of two factors or more by an independent vector of expected length `length`; the needed one thrice."""
    x = np.zeros((len(design.texts), width), dtype=np.float32)
    for target in designs.targets(design):
        if "^" in target:
            strength = 3 if target in design.needed else 1
            x += effect(design, target, strength * length * _normal(rng, width) / np.float32(width**0.5))
    return x


def unit(width: int, rng: np.random.Generator) -> Float[np.ndarray, " d"]:
    """A direction drawn evenly from the sphere."""
    direction = rng.standard_normal(width)
    return direction / np.linalg.norm(direction)


def half_sign(design: Design, target: str) -> Float[np.ndarray, "n 1"]:
    """± ½ by the target, float32."""
    return np.where(designs.parity(design, target), np.float32(0.5), np.float32(-0.5))[:, None]


@dataclass(frozen=True)
class HandBuilt:
    """A residual network with one ReLU that computes speaker ⊕ negated and writes it along `written`.

    stream: the residual vectors after the block; readout of a text: stream · reading + what other positions bring.
    """

    stream: Float[np.ndarray, "n d"]
    written: Float[np.ndarray, " d"]
    reading: Float[np.ndarray, " d"]
    elsewhere: Float[np.ndarray, " n"]

    def readout(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What the network says of texts `rows` with these residual vectors."""
        return vectors @ self.reading + self.elsewhere[rows]


def hand_built(
    design: Design, width: int, rng: np.random.Generator, *, uses: bool, computes: bool = True, strength: float = 4.0
) -> HandBuilt:
    """The network that computes the XOR and reads it, or computes it and answers the same question from elsewhere.

    `computes` False zeroes the neuron's output weights: the same network before it learned anything.
    """
    x = background(design, width, rng).astype(np.float64)
    embeddings = {factor: unit(width, rng) for factor in ("speaker", "negated")}
    for factor, direction in embeddings.items():
        x += 8 * half_sign(design, factor) * direction
    reads = np.linalg.pinv(np.stack(list(embeddings.values())))
    # In units of its input the neuron sees ±½ and what the background says along these two directions.
    a, b = ((x @ reads) / 8 + 0.5).T
    xor = a + b - 2 * np.maximum(a + b - 1, 0)
    written = unit(width, rng)
    if computes:
        x += strength * (xor - xor.mean())[:, None] * written
    other = unit(width, rng)
    other -= (other @ written) * written
    reading = written + 0.5 * other if uses else other
    answer = np.where(designs.parity(design, TARGET), 1.0, -1.0)
    return HandBuilt(x.astype(np.float32), written, reading, answer * (0.5 if uses else 2.0))


def signs(design: Design, k: int, rng: np.random.Generator) -> Float[np.ndarray, "n k"]:
    """±1 inputs of a network: the four factors, and k − 4 that are drawn anew for every text."""
    factors = np.stack([np.where(values, 1.0, -1.0) for values in design.factors.values()], axis=1)
    return np.concatenate([factors, rng.choice([-1.0, 1.0], size=(len(factors), k - factors.shape[1]))], axis=1)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)
