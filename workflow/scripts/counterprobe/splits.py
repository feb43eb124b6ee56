"""Which texts a probe is fitted on and which it is tested on.

What a fold holds out decides what an accuracy means:

    carriers    items AND the tokens that realise the factors. Train and test share neither: what is left to
                generalise is the feature. Designs written in blocks leave one block out; a csv design with
                declared carriers deals items and carriers to folds, and tests on texts of which both fall
                into the fold.
    items       items only; names and suffix words are shared between train and test on purpose, so a probe
                that merely knows each name by heart succeeds. Reported beside `carriers`, never instead.
    published   rows at random, for each file and each target anew: the protocol of Marks 2024
                (github.com/saprmarks/geometry-of-truth, branch rax, xor_probing.ipynb). It separates the
                rows of one item. What is left of an incomplete item leans the other way, so that accuracies
                fall below one half.

Couples of items that exchange their wrong classes are never separated, or a class would be right more often
than wrong on one side of the split. Inner folds, for choosing a layer or a penalty, hold out the same thing
inside the training part.

Pitfall: a fold of the carriers protocol of a csv design leaves out the texts that mix items of one side with
carriers of the other; `Fold.dropped` counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from counterprobe import designs
from counterprobe.designs import Design
from counterprobe.progress import UserError

PROTOCOLS = ("carriers", "items")


class NotTestable(UserError):
    """The design has nothing that this protocol could hold out: a verdict, not a fault of the data."""


@dataclass(frozen=True)
class Fold:
    """Indices of texts, ascending. inner: (train, valid) inside `train`. dropped: texts in neither part."""

    train: np.ndarray
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]
    dropped: int = 0


def folds(design: Design, protocol: str, n_inner: int, *, n_folds: int = 4, seed: int = 0) -> tuple[Fold, ...]:
    """Folds of one protocol, `carriers` or `items`, with `n_inner` inner folds each (0 for none).

    A design in blocks has as many `carriers` folds as blocks, whatever `n_folds` is; its inner folds leave
    out the remaining blocks, in `n_inner` lots. Raises NotTestable where `carriers` has nothing to hold out;
    UserError where there are fewer groups than folds, or a target has one class in some part of a fold.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}' has no folds; use one of {', '.join(PROTOCOLS)}, or published_split")
    if n_inner == 1 or n_inner < 0:
        raise UserError(f"{n_inner} inner folds; use 0 for none, or at least 2")
    # One stream a protocol: the folds of one do not depend on whether the other was asked for.
    rng = np.random.default_rng([seed, PROTOCOLS.index(protocol)])
    if protocol == "items":
        made = _leave_out([_deal_couples(design, n_folds, rng)], n_folds, n_inner)
    elif (design.blocks >= 0).all():
        _, blocks = np.unique(design.blocks, return_inverse=True)
        n_blocks = int(blocks.max()) + 1
        if n_blocks < 2:
            raise NotTestable(f"design '{design.name}': its one block cannot be held out; write it in more blocks")
        made = _leave_out([blocks], n_blocks, n_inner)
    else:
        if not design.carriers:
            raise NotTestable(
                f"design '{design.name}' declares no carriers, so nothing but items can be held out; "
                "declare `carriers`, or use the protocol items"
            )
        dealt = [_deal_couples(design, n_folds, rng)]
        dealt += [_deal_carriers(design, factor, n_folds, rng) for factor in design.carriers]
        made = _leave_out(dealt, n_folds, n_inner)
    _check_classes(design, protocol, made)
    return made


def primary_protocol(design: Design, protocols: Sequence[str], **settings: int) -> str | None:
    """The first of the configured protocols that holds something out in this design: the one results are read under.

    None where there is none (all published, or not testable). `settings` as for `folds`.
    """
    for protocol in protocols:
        if protocol in PROTOCOLS:
            try:
                folds(design, protocol, 0, **settings)
            except NotTestable:
                continue
            return protocol
    return None


def published_split(design: Design, target_index: int, seed: int, train_share: float = 0.8) -> Fold:
    """A random split of the rows of every file, drawn anew for each target; trains on `train_share` of them.

    `target_index` is the target's place in `designs.targets`. There are no inner folds: the protocol tunes
    nothing. Raises UserError where a file has too few texts to split.
    """
    rng = np.random.default_rng([seed, target_index])
    train, test = [], []
    for file in np.unique(design.files):
        rows = rng.permutation(np.flatnonzero(design.files == file))
        cut = int(train_share * rows.size)
        if not 0 < cut < rows.size:
            raise UserError(
                f"design '{design.name}': {rows.size} texts of one file cannot be split {train_share:g} to "
                f"{1 - train_share:g}; use more texts"
            )
        train.append(rows[:cut])
        test.append(rows[cut:])
    return Fold(np.sort(np.concatenate(train)), np.sort(np.concatenate(test)), ())


def _leave_out(dealt: Sequence[np.ndarray], n_folds: int, n_inner: int) -> tuple[Fold, ...]:
    """Fold k tests what is dealt to k by every column, and trains on what is dealt to k by none."""
    dealt_to = np.stack(dealt)
    if n_inner > n_folds - 1:
        raise UserError(
            f"{n_inner} inner folds, but only {n_folds - 1} of {n_folds} groups are left inside a fold; "
            "lower inner_folds"
        )
    made = []
    for k in range(n_folds):
        train = (dealt_to != k).all(0)
        test = (dealt_to == k).all(0)
        inner = []
        others = [other for other in range(n_folds) if other != k]
        for lot in np.array_split(others, n_inner) if n_inner else ():
            held = np.isin(dealt_to, lot)
            inner.append((np.flatnonzero(train & ~held.any(0)), np.flatnonzero(train & held.all(0))))
        made.append(Fold(np.flatnonzero(train), np.flatnonzero(test), tuple(inner), int((~train & ~test).sum())))
    return tuple(made)


def _deal_couples(design: Design, n_folds: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Fold of each text: couples at random, evenly from every stratum and, within it, every layout, block and carrier.

    A couple's layout is which cells its texts fill. Where items are incomplete a design is balanced over all of them
    only: what one fold has too many of the others lack, a probe learns that, and on the fold it is wrong. In the
    published layout, dealt without regard to it, an additive representation reads speaker XOR negated at .48.
    """
    couples, first, couple_of = np.unique(design.couples, return_index=True, return_inverse=True)
    _refuse_few(design, "items (whole couples)", couples.size, n_folds)
    cells = np.zeros((couples.size, 2 ** len(design.factors)), dtype=np.int64)
    np.add.at(cells, (couple_of, designs.cells(design)), 1)
    _, layout = np.unique(cells, axis=0, return_inverse=True)
    blocks, strata = design.blocks[first], design.strata[first]
    # Blocks come in another order in each stratum, or one block would miss the same fold in all of them.
    turned = (blocks + strata) % (blocks.max() + 1) if (blocks >= 0).all() else blocks
    # Carriers come in another order in each layout, or a carrier would meet the same folds in all of them.
    carriers = [
        rng.random((layout.max() + 1, units.max() + 1))[layout, units[first]] for units in design.carriers.values()
    ]
    order = np.lexsort((rng.random(couples.size), *carriers, turned, layout, strata))
    fold_of = np.empty(couples.size, dtype=np.int64)
    fold_of[order] = np.arange(couples.size) % n_folds
    return fold_of[couple_of]


def _deal_carriers(design: Design, factor: str, n_folds: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """Fold of each text by its carrier; each class's carriers are dealt on their own, pairs as pairs."""
    units, unit_of = np.unique(design.carriers[factor], return_inverse=True)
    share = np.bincount(unit_of, weights=design.factors[factor]) / np.bincount(unit_of)
    fold_of = np.empty(units.size, dtype=np.int64)
    kinds = np.where(share == 0, -1, np.where(share == 1, 1, 0))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        if members.size < n_folds:
            raise NotTestable(
                f"design '{design.name}': {members.size} carriers of one class of {factor} for {n_folds} "
                "folds; add carriers, or use the protocol items"
            )
        fold_of[rng.permutation(members)] = np.arange(members.size) % n_folds
    return fold_of[unit_of]


def _refuse_few(design: Design, what: str, n: int, n_folds: int) -> None:
    if n_folds < 2:
        raise UserError(f"design '{design.name}': {n_folds} folds; use at least 2")
    if n < n_folds:
        raise UserError(f"design '{design.name}': {n} {what} for {n_folds} folds; add items or use fewer folds")


def _check_classes(design: Design, protocol: str, made: Sequence[Fold]) -> None:
    for target, labels in designs.targets(design).items():
        for k, fold in enumerate(made):
            parts = [("training", fold.train), ("test", fold.test)]
            for j, (train, valid) in enumerate(fold.inner):
                parts += [(f"training of inner fold {j}", train), (f"validation of inner fold {j}", valid)]
            for part, indices in parts:
                if np.unique(labels[indices]).size < 2:
                    found = f"only {bool(labels[indices[0]])}" if indices.size else "no text"
                    raise UserError(
                        f"design '{design.name}', protocol {protocol}: target '{target}' has {found} in "
                        f"the {part} texts of fold {k}; use fewer folds, or add items or carriers"
                    )
