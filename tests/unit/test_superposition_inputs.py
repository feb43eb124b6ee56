import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import superposition_inputs
from counterprobe.progress import UserError
from counterprobe.superposition_training import generator


@given(m=st.integers(1, 9), s=st.integers(0, 4))
def test_all_sparse_inputs_are_all_and_different(m, s):
    inputs = superposition_inputs.all_sparse(m, s)
    assert len(inputs) == sum(math.comb(m, k) for k in range(s + 1))
    assert len({tuple(row) for row in inputs.tolist()}) == len(inputs)
    assert int(inputs.sum(dim=1).max()) == min(m, s)


def test_and_and_xor_are_those_of_python():
    inputs = superposition_inputs.all_sparse(4, 4)
    pairs = superposition_inputs.all_pairs(4)
    conjunctions = superposition_inputs.boolean_pairs(inputs, pairs, "and")
    exclusive = superposition_inputs.boolean_pairs(inputs, pairs, "xor")
    for row, said, other in zip(inputs.bool().tolist(), conjunctions.tolist(), exclusive.tolist(), strict=True):
        for (i, k), conjunction, xor in zip(pairs.tolist(), said, other, strict=True):
            assert bool(conjunction) == (row[i] and row[k])
            assert bool(xor) == (row[i] != row[k])
    with pytest.raises(ValueError, match="'or'"):
        superposition_inputs.boolean_pairs(inputs, pairs, "or")


@settings(max_examples=25)
@given(m=st.integers(6, 14), data=st.data(), seed=st.integers(0, 99))
def test_four_cells_have_the_asked_number_of_active_inputs(m, data, seed):
    active = torch.tensor(data.draw(st.lists(st.integers(2, m - 2), min_size=1, max_size=5)))
    draws = generator(seed)
    pairs = superposition_inputs.random_pairs(m, 3, draws)
    inputs = superposition_inputs.four_cells(m, pairs, active, draws)
    assert torch.equal(inputs.sum(dim=3), active.float().expand(3, 4, -1))
    for index, (i, k) in enumerate(pairs.tolist()):
        values = inputs[index, :, :, [i, k]]
        wanted = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        assert torch.equal(values, wanted[:, None].expand(-1, len(active), -1))


def test_four_cells_refuse_what_cannot_be():
    pairs = torch.tensor([[0, 1]])
    for active in (1, 5):
        with pytest.raises(UserError, match=f"not {active} to {active}; change s or m"):
            superposition_inputs.four_cells(6, pairs, torch.tensor([active]), generator(0))


def test_live_pairs_have_their_rate_and_equal_patterns():
    inputs = superposition_inputs.live_pairs((200_000, 1), 0.6, generator(5)).unflatten(1, (1, 2))[:, 0]
    code = (2 * inputs[:, 0] + inputs[:, 1]).long()
    shares = torch.bincount(code, minlength=4) / len(code)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.005, rtol=0)


def test_features_of_probed_texts_are_their_cells():
    texts = superposition_inputs.paired_texts(7, 2.0, 50, "features", generator(1))
    computed = texts.inputs[..., 0::2] * texts.inputs[..., 1::2]
    assert torch.equal(computed[..., :4], texts.cells.float().expand(50, -1, -1))
    background = texts.inputs[..., 8:]
    assert torch.equal(background, background[:, :1].expand_as(background))
    # Each of the three ways of being off is met, and one item keeps to one way.
    off = texts.inputs[:, 0, :2]
    assert len({tuple(row) for row in off.tolist()}) == 3
    for cell in range(0, 16, 2):
        assert torch.equal(texts.inputs[:, cell, :2], off)


def test_inputs_of_probed_texts_are_their_cells():
    texts = superposition_inputs.paired_texts(5, 2.0, 20, "inputs", generator(1))
    assert torch.equal(texts.inputs[..., :4], texts.cells.float().expand(20, -1, -1))
    assert texts.cells.float().mean(dim=0).tolist() == [0.5] * 4


def test_probed_texts_need_four_features_and_a_known_level():
    with pytest.raises(UserError, match="m = 3; raise m"):
        superposition_inputs.paired_texts(3, 1.0, 4, "features", generator(0))
    with pytest.raises(ValueError, match="'words'"):
        superposition_inputs.paired_texts(5, 1.0, 4, "words", generator(0))
