"""Embeddings that never move: rows, the trainer's word for it, losses and paired gaps against slow ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from safetensors.torch import load_file
from scipy import stats

from counterprobe import (
    claims,
    frozen_embedding_plots,
    frozen_embedding_table,
    frozen_embeddings,
    language_model,
    ledger,
    superposition_cells,
    tokenization,
)
from counterprobe.language_model import Architecture, Embedding, Training
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
WORDS = ("grass", "snow", "coal", "is", "green", "white", "black", ".")
TINY = Architecture(layers=1, width=16, heads=2, context=16)
# A decay that would be seen at once in a matrix that has it.
QUICK = Training(steps=6, batch=8, learning_rate=1e-2, warmup=1, weight_decay=0.5)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.word_level_tokenizer(WORDS)


def lines(tokenizer, seed=0, batch=8):
    rng = np.random.default_rng(seed)
    pairs = [f"{noun} is {colour} ." for noun, colour in zip(WORDS[:3], WORDS[4:7], strict=True)]
    return language_model.batches(
        lambda n: rng.choice(pairs, n).tolist(), tokenizer, batch=batch, context=16, seed=seed
    )


def cosines(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(rows), dtype=bool)]


# --- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_too_similar_are_drawn_anew(seed):
    plain = np.random.default_rng(seed).standard_normal((60, 16))
    rows = frozen_embeddings.gaussian(60, 16, 0.6, np.random.default_rng(seed))
    assert cosines(plain).max() > 0.6
    assert cosines(rows).max() <= 0.6
    assert frozen_embeddings.largest_cosine(rows, rows) == pytest.approx(cosines(rows).max())
    assert stats.kstest(rows.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", [frozen_embeddings.gaussian, frozen_embeddings.orthogonal])
def test_more_rows_than_there_is_room_for_are_refused(kind):
    with pytest.raises(
        UserError, match=r"frozen_embeddings\.similar: 40 random rows of width 2 with no cosine above 0\.5"
    ):
        kind(40, 2, 0.5, np.random.default_rng(0))


def test_orthogonal_rows_are_bases_of_the_space():
    few = frozen_embeddings.orthogonal(10, 16, 0.8, np.random.default_rng(0))
    assert np.allclose(few @ few.T, 16 * np.eye(10))
    many = frozen_embeddings.orthogonal(40, 16, 0.8, np.random.default_rng(0))
    for base in (many[:16], many[16:32]):
        assert np.allclose(base @ base.T, 16 * np.eye(16))
    assert cosines(many).max() <= 0.8
    assert np.linalg.matrix_rank(many) == 16


def test_permuted_rows_are_the_learned_ones_of_other_tokens():
    learned = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    rows = frozen_embeddings.rows_of("permuted", learned, 0.5, np.random.default_rng(0))
    assert sorted(rows.tolist()) == sorted(learned.tolist())
    assert (rows == learned).all(dim=1).float().mean() < 0.2


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_random_rows_have_the_length_of_the_initialisation(kind):
    learned = language_model.build(Architecture(width=64, layers=1), 80, seed=0).get_input_embeddings().weight.detach()
    rows = frozen_embeddings.rows_of(kind, learned, 0.6, np.random.default_rng(0))
    assert rows.dtype == learned.dtype
    assert float(rows.norm()) == pytest.approx(float(learned.norm()), rel=0.05)


# --- the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_rows_do_not_move_and_tied_ones_are_the_unembedding(tokenizer, tmp_path, tied, frozen):
    rows = torch.randn(tokenizer.get_vocab_size(), 16, generator=torch.Generator().manual_seed(1))
    start = Embedding(rows, frozen=frozen, tied=tied)
    language_model.train(lines(tokenizer), tokenizer, TINY, QUICK, (0, 6), tmp_path, embedding=start)
    before, after = (language_model.load(tmp_path / f"step{step}") for step in (0, 6))
    assert torch.equal(before.get_input_embeddings().weight, rows)
    assert torch.equal(after.get_input_embeddings().weight, rows) == frozen
    out = after.get_output_embeddings().weight
    assert torch.equal(out, after.get_input_embeddings().weight) == tied
    assert torch.equal(out, before.get_output_embeddings().weight) == (tied and frozen)
    for name in ("layers.0.mlp.dense_h_to_4h.weight", "layers.0.attention.query_key_value.weight"):
        assert not torch.equal(after.gpt_neox.get_parameter(name), before.gpt_neox.get_parameter(name))
    stored = [name for name in load_file(tmp_path / "step6" / "model.safetensors") if "embed" in name or "head" in name]
    assert len(stored) == (1 if tied else 2)


def test_twins_start_from_the_same_blocks(tokenizer):
    rows = torch.zeros(tokenizer.get_vocab_size(), 16)
    plain, frozen = (
        language_model.build(TINY, len(rows), 3, start) for start in (Embedding(), Embedding(rows, frozen=True))
    )
    ours = dict(plain.named_parameters())
    differing = [name for name, value in frozen.named_parameters() if not torch.equal(value, ours[name])]
    assert differing == ["gpt_neox.embed_in.weight"]


# --- numbers -------------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own_and_the_entropy_scipys(tokenizer):
    model = language_model.build(TINY, tokenizer.get_vocab_size(), 0).eval()
    batches = [batch for _, batch in zip(range(3), lines(tokenizer, batch=5), strict=False)]
    found, entropy, tokens = frozen_embeddings.held_out_loss(model, iter(batches))
    slow, seen = [], []
    with torch.no_grad():
        for batch in batches:
            for ids, mask in zip(batch.ids, batch.mask, strict=True):
                line = ids[mask][None]
                slow += [float(model(line, labels=line).loss)] * (line.shape[1] - 1)
                seen += line[0, 1:].tolist()
    assert found == pytest.approx(np.mean(slow), rel=1e-5)
    assert tokens == len(seen)
    assert entropy == pytest.approx(stats.entropy(np.bincount(seen)))


LOST = np.array([0.10, 0.12, 0.09])


def planted(lost=LOST, gained=1.0):
    """Losses of three seeds whose twins differ more between seeds than from each other."""
    rows = []
    for tied in (False, True):
        for seed, (loss, more) in enumerate(zip((1.0, 2.0, 3.0), lost, strict=True)):
            for kind, value in (("trainable", loss), ("gaussian", loss + more), ("permuted", loss)):
                site = {**frozen_embedding_table.BLANK, "embedding": kind, "tied": tied, "seed": seed, "n_seeds": 1}
                rows.append({**site, "score": "loss", "level": loss + gained, "estimate": value})
                for target, probe in (("negated^match", "answer"), *((t, "logistic") for t in TARGETS)):
                    number = {"target": target, "probe": probe, "score": "accuracy", "estimate": 0.7 + 0.01 * seed}
                    rows.append({**site, **number})
    return pd.DataFrame(rows)[::-1]


TARGETS = ("negated^match", "speaker^negated")


def test_gaps_are_paired_over_seeds():
    found = pd.DataFrame(list(frozen_embedding_table.gaps(planted(gained=2.0), 0.95)))
    gap = found[(found.score == "loss_gap") & (found.embedding == "gaussian") & ~found.tied].iloc[0]
    slow = stats.ttest_1samp(LOST, 0).confidence_interval(0.95)
    assert gap.estimate == pytest.approx(LOST.mean())
    assert (gap.lower, gap.upper) == pytest.approx((slow.low, slow.high))
    share = found[(found.score == "loss_gap_share") & (found.embedding == "gaussian") & ~found.tied].iloc[0]
    assert (share.lower, share.upper) == pytest.approx((slow.low / 2, slow.high / 2))
    assert (found[found.embedding == "permuted"].estimate == 0).all()
    assert set(found[found.score == "accuracy_gap"].target) == set(TARGETS)
    assert set(found.n_seeds) == {3}


def test_a_finetuned_model_is_held_against_a_finetuned_one():
    """Of which the plain one has twice the loss here."""
    table = planted()
    parts = {"trainable": "trainable_tuned", "gaussian": "one_row_tuned"}
    finetuned = table[table.embedding.isin(parts)].assign(embedding=lambda rows: rows.embedding.map(parts))
    plain = table[table.embedding == "trainable"].assign(estimate=lambda rows: 2 * rows.estimate)
    found = pd.DataFrame(list(frozen_embedding_table.gaps(pd.concat([finetuned, plain]), 0.95)))
    assert set(found.embedding) == {"one_row_tuned"}
    assert found[found.score == "loss_gap"].estimate.to_numpy() == pytest.approx(LOST.mean())


@given(st.integers(0, 2**16))
def test_another_row_is_like_no_row_but_its_own(seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((12, 16))
    drawn = frozen_embeddings.another_row(rows, 3, 0.4, rng)
    cosines_with = rows @ drawn / np.linalg.norm(rows, axis=1) / np.linalg.norm(drawn)
    assert np.delete(cosines_with, 3).max() <= 0.4


def test_a_row_that_cannot_be_told_apart_is_refused():
    everywhere = np.concatenate([np.eye(2), -np.eye(2)]).repeat(2, axis=0)
    with pytest.raises(UserError, match=r"no cosine above 0\.1"):
        frozen_embeddings.another_row(everywhere, 0, 0.1, np.random.default_rng(0))


def test_tokens_are_drawn_among_those_that_are_predicted(tokenizer):
    batches = [batch for _, batch in zip(range(3), lines(tokenizer), strict=False)]
    chosen = frozen_embeddings.chosen_tokens(iter(batches), 4, np.random.default_rng(0))
    assert len(set(chosen)) == 4
    seen = {
        int(token)
        for batch in batches
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
        for token in ids[mask][1:]
    }
    assert set(chosen) <= seen
    assert frozen_embeddings.chosen_tokens(iter(batches), 99, np.random.default_rng(0)) == sorted(seen)


def test_what_has_learned_nothing_has_no_share():
    found = pd.DataFrame(list(frozen_embedding_table.gaps(planted(gained=-0.1), 0.95)))
    shares = found[found.score == "loss_gap_share"]
    assert shares.estimate.isna().all()
    assert shares.note.str.contains("no more than how often tokens occur").all()


@pytest.mark.parametrize(
    ("lost", "verdict"), [(LOST, "supported"), (LOST / 30, "contradicted"), (LOST / 2, "inconclusive")]
)
def test_the_claim_is_decided_by_the_whole_interval(lost, verdict):
    table = pd.concat([planted(lost), pd.DataFrame(list(frozen_embedding_table.gaps(planted(lost), 0.95)))])
    subject = {"model": "m", "design": "d"}
    claim = {"C38": ledger.load()["C38"]}
    judged, legs = claims.judge(claim, {"frozen_embeddings": table}, subject, {})
    assert judged.verdict.tolist() == [verdict]
    assert legs.decides.tolist() == [True, True, False, False, False]


def test_the_figure_has_every_kind_that_was_trained():
    table = pd.concat([planted(), pd.DataFrame(list(frozen_embedding_table.gaps(planted(), 0.95)))])
    figure = frozen_embedding_plots.draw(table)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [frozen_embedding_plots.NAMES[kind] for kind in ("trainable", "gaussian", "permuted")]
    assert "speaker ⊕ negated" in figure.axes[3].get_title()
    plt.close(figure)


@pytest.mark.slow
def test_small_models_learn_around_rows_that_never_move(tmp_path):
    settings = {
        "architecture": {"layers": 1, "width": 32, "heads": 2},
        "training": {"steps": 60, "batch": 32, "learning_rate": 0.005},
        "similar": 0.8,
        "rows": 2,
        "finetune": 10,
        "seed": 0,
    }
    spec = {
        "frozen_embeddings": settings,
        "corpus": {"topics": {"cities": 8}, "classes": 4, "carriers": 4},
        "run": {"frozen_embeddings": list(frozen_embeddings.KINDS)},
        "probes": {"penalties": [0.01, 0.1], "inner_folds": 2, "outer_folds": 4, "seed": 0},
    }
    for seed in (0, 1):
        found = frozen_embeddings.measure(spec, [RESOURCES / "cities.csv"], seed, device="cpu")
        superposition_cells.write(found, tmp_path / f"{seed}.parquet", frozen_embedding_table.COLUMNS)
    table = frozen_embedding_table.gather([tmp_path / "0.parquet", tmp_path / "1.parquet"], 0.95)
    assert list(table) == list(frozen_embedding_table.COLUMNS)
    losses = table[table.score == "loss"]
    kinds = {frozen_embedding_table.TRAINABLE, *frozen_embeddings.KINDS}
    assert len(losses) == 2 * 2 * (len(kinds) + 3)
    # The grammar alone, which every kind can learn, is most of what there is to gain.
    trained = losses[losses.embedding.isin(kinds)]
    assert (trained.estimate < 0.7 * trained.level).all()
    of = losses.set_index(["tied", "seed", "embedding"]).estimate.unstack()
    assert (of.one_row > of.one_row_tuned).all()
    assert (of.one_row_tuned > of.trainable_tuned).all()
    assert table[table.embedding == "one_row"].note.str.startswith("rows of: ").any()
    every = table[table.seed == frozen_embedding_table.EVERY_SEED]
    assert set(every.embedding) == {*frozen_embeddings.KINDS, "one_row", "one_row_tuned"}
    random = table[(table.score == "largest_cosine") & table.embedding.isin(["gaussian", "orthogonal"])]
    assert (random.estimate <= 0.8 + 1e-6).all()
    read = table[(table.score == "accuracy") & (table.seed >= 0)]
    assert set(zip(read.probe, read.target, strict=True)) == {
        ("answer", TARGETS[0]),
        *(("logistic", t) for t in TARGETS),
    }
    assert read.estimate.between(0, 1).all()
    assert not table.duplicated(["embedding", "tied", "seed", "target", "probe", "score"]).any()
