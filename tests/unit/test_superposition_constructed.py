import numpy as np
import pytest
import torch

from counterprobe import (
    superposition_cells,
    superposition_constructed,
    superposition_inputs,
    superposition_reading,
)
from counterprobe.progress import UserError
from counterprobe.superposition_training import generator


def test_the_connection_probability_is_that_of_the_construction():
    # log(100)² = 21.2076: facts that do not come from the code.
    assert superposition_constructed.connection_probability(100, 100) == pytest.approx(2.12076, abs=1e-5)
    assert superposition_constructed.connection_probability(100, 449) > 1
    assert superposition_constructed.connection_probability(100, 450) < 1
    assert superposition_constructed.connection_probability(100, 1800) < 0.5


def test_sizes_at_which_the_construction_does_not_exist_are_in_the_table():
    spec = {"m": 100, "widths": [400, 512], "s": [2], "pairs": 4, "contexts": 4, "networks": 3}
    cells = superposition_cells.cells(superposition_cells.networks(superposition_constructed.universal_rows(spec)))
    missing = cells[(cells.d == 400) & (cells.score == "max_error")]
    assert (missing.excluded == 3).all()
    assert (missing.n_networks == 0).all()
    assert missing.reason.str.startswith("p = log²(100)/√400 = 1.06 > 1").all()
    assert set(missing.readout) == {"mean", "mean_centred"}
    there = cells[(cells.d == 512) & (cells.score == "max_error")]
    assert (there.n_networks == 3).all()
    with pytest.raises(ValueError, match=r"1\.06"):
        superposition_constructed.bernoulli_weights(3, 3, 1.06, generator(0))


def test_a_neuron_counts_its_active_inputs_but_one():
    weights = torch.tensor([[1.0, 1, 1, 0]])
    inputs = torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    assert superposition_constructed.hidden(weights, inputs)[:, 0].tolist() == [0, 0, 1, 2]


def test_the_mean_read_off_is_exact_for_the_pair_alone_and_biased_by_p_for_each_other():
    draws = generator(2)
    m, d, p = 40, 4096, 0.3
    weights = superposition_constructed.bernoulli_weights(m, d, p, draws)
    pairs = superposition_inputs.random_pairs(m, 12, draws)
    inputs = superposition_inputs.four_cells(m, pairs, torch.full((8,), 2), draws)
    errors, reason = superposition_constructed.universal_errors(weights, pairs, inputs)
    assert reason == ""
    assert errors[:, 3].abs().max() < 1e-5
    assert errors[:, 1:3].mean().item() == pytest.approx(p, abs=0.02)
    assert errors[:, 0].mean().item() == pytest.approx(p**2, abs=0.02)


def test_pairs_without_a_common_neuron_are_a_reason():
    weights = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    pairs = torch.tensor([[0, 1], [0, 2]])
    inputs = superposition_inputs.four_cells(4, pairs, torch.tensor([2]), generator(0))
    _, reason = superposition_constructed.universal_errors(weights, pairs, inputs)
    assert reason == "1 of 2 pairs have no neuron connected to both inputs"


@pytest.mark.parametrize("p", [0.0, 0.15, 0.4])
def test_the_analytic_interaction_is_the_measured_one(p):
    m, s = 8, 2.0
    draws = generator(11, round(100 * p))
    weights = superposition_constructed.designated_weights(m, 48, p, draws)
    texts = superposition_inputs.paired_texts(m, s, 6000, "features", draws)
    hidden = superposition_constructed.hidden(weights, texts.inputs)
    analytic = superposition_constructed.analytic_interaction(weights, s / m)
    measured = superposition_reading.interactions(hidden, texts.cells, [(0, 1)])[0, 1]
    # Neuron by neuron first: an oracle that does not square anything.
    signs = (2 * texts.cells[:, 0].float() - 1) * (2 * texts.cells[:, 1].float() - 1)
    delta = torch.einsum("c,icd->id", signs / 4, hidden)
    served = weights[:, 0::2]
    both = served[:, 0] * served[:, 1]
    expected = both / 9 * (1 / 6) ** served[:, 2:4].sum(dim=1) * (1 - s / m) ** served[:, 4:].sum(dim=1)
    error = delta.std(dim=0) / len(delta) ** 0.5
    assert ((delta.mean(dim=0) - expected).abs() <= 5 * error + 1e-6).all()
    assert measured == pytest.approx(analytic, rel=0.15, abs=1e-9)


def test_the_bound_is_the_largest_error_over_every_background():
    m, d, s = 7, 40, 3
    weights = superposition_constructed.bernoulli_weights(m, d, 0.5, generator(4))
    pairs = superposition_inputs.all_pairs(m)
    inputs = superposition_inputs.all_sparse(m, s)
    readoffs = superposition_constructed.mean_readoff(weights, pairs)
    said = superposition_constructed.hidden(weights, inputs) @ readoffs
    errors = (said - superposition_inputs.boolean_pairs(inputs, pairs, "and")).abs().amax(dim=0)
    torch.testing.assert_close(superposition_constructed.error_bound(weights, pairs, s), errors)


def test_inputs_are_read_from_the_layer_alone_without_bias():
    m, d, p, s = 24, 200_000, 0.3, 3
    weights = superposition_constructed.bernoulli_weights(m, d, p, generator(5))
    inputs = torch.stack([torch.arange(m) < s, torch.arange(m) >= m - s]).float()
    read = superposition_constructed.hidden(weights, inputs) @ superposition_constructed.input_readoff(weights, p, s)
    assert (read - inputs).abs().max() < 0.03


XOR = {"m": 16, "dimensions": [12], "widths": [48, 128], "s": [2], "pairs": 4, "contexts": 4, "networks": 2}
XOR |= {"probed": {"widths": [48, 128], "s": [3], "items": 8, "penalty": 0.01, "dichotomies": 2}}


def test_xors_are_read_with_twice_the_error_and_impossible_sizes_are_counted():
    # log(16)² = 7.687 > √48 = 6.93.
    cells = superposition_cells.cells(superposition_cells.networks(superposition_constructed.xor_rows(XOR)))
    built = cells[cells.network == "bernoulli"]
    assert (built[built.d == 48].excluded == 2).all()
    assert built[built.d == 48].reason.str.contains("> 1").all()
    assert set(built[built.d == 48].score) == set(built[built.d == 128].score)
    assert (cells[cells.network == "random"].n_networks == 2).all()
    there = built[(built.d == 128) & (built.setting == "direct inputs")].set_index(["target", "readout", "score"])
    for readout in ("mean", "mean_centred"):
        of_and = there.loc[("and", readout, "max_error")].estimate
        assert there.loc[("xor", readout, "max_error")].estimate == pytest.approx(2 * of_and, rel=1e-5)
        assert there.loc[("xor / and", readout, "rms_error_ratio")].estimate == pytest.approx(2, rel=1e-5)
    with pytest.raises(UserError, match="fewer dimensions"):
        superposition_constructed.xor_rows(XOR | {"dimensions": [16]})


def test_exclusive_neurons_share_nothing():
    weights = superposition_constructed.designated_weights(5, 12, 0.0, generator(0))
    assert (weights.sum(dim=1) == 2).all()
    assert weights[:, 0::2].sum(dim=0).tolist() == [3, 3, 2, 2, 2]


def test_superposed_inputs_see_unit_features_and_cross_talk():
    gram = superposition_constructed.superposed(20, 10, generator(1))
    torch.testing.assert_close(gram.diagonal(), torch.ones(20))
    assert np.linalg.matrix_rank(gram.numpy()) == 10


def test_a_designated_network_that_cannot_be_is_excluded():
    spec = {"base": {"m": 6, "d": 8, "s": 1, "p": 0.5}, "m": [], "d": [], "s": [], "p": [1.2], "networks": 2}
    spec |= {"items": 12, "penalty": 0.001, "dichotomies": 2}
    table = superposition_cells.networks(superposition_constructed.designated_rows(spec))
    impossible = table[table.p == 1.2]
    assert (impossible.reason == "p = 1.2 > 1 is no probability").all()
    assert set(impossible.score) == set(table[table.p == 0.5].score)


def test_the_trend_is_the_slope_of_accuracy_on_the_analytic_interaction():
    spec = {"base": {"m": 6, "d": 16, "s": 1, "p": 0}, "m": [], "d": [], "s": [], "p": [0.3, 0.6], "networks": 2}
    spec |= {"items": 60, "penalty": 0.001, "dichotomies": 2}
    table = superposition_cells.networks(superposition_constructed.designated_rows(spec)).query("seed == 1")
    scores = table[table.p.notna()].pivot(index=["p", "setting"], columns="score")
    analytic = scores.loc[(slice(None), "direct inputs"), ("prediction", "interaction")].to_numpy()
    for setting in ("direct inputs", "superposed inputs"):
        accuracy = scores.loc[(slice(None), setting), ("estimate", "accuracy")].to_numpy()
        expected = np.cov(analytic, accuracy)[0, 1] / np.var(analytic, ddof=1)
        slope = table[(table.score == "accuracy_slope") & (table.setting == setting)].estimate.item()
        assert slope == pytest.approx(expected)
