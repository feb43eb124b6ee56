"""Interventions: against residual streams written by hand, and what must not be left behind."""

import copy

import pytest
import torch

from counterprobe import activations, interventions, language_model
from counterprobe.interventions import Places
from counterprobe.progress import UserError

WIDTH, VOCABULARY = 32, 40


@pytest.fixture(scope="module")
def model():
    built = language_model.build(language_model.Architecture(layers=3, width=WIDTH, heads=2), VOCABULARY, seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bridge(model):
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    return TransformerBridge.boot_transformers(
        "gpt_neox",
        hf_model=copy.deepcopy(model),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        device="cpu",
        dtype=torch.float32,
    )


def prompts(rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def vector(seed: int = 0, size: float = 3.0) -> torch.Tensor:
    return size * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_what_becomes_of_a_vector():
    x, u = torch.randn(2, 5, WIDTH), vector(1)
    unit = u / u.norm()
    assert torch.allclose(interventions.add(u)(x), x + u)
    assert (interventions.project_out(u)(x) @ unit).abs().max() < 1e-5
    about = torch.randn(WIDTH)
    assert torch.allclose(interventions.project_out(u, about)(x) @ unit, (about @ unit).expand(2, 5), atol=1e-5)
    assert torch.allclose(interventions.clamp(u, 2.5)(x) @ unit, torch.full((2, 5), 2.5), atol=1e-5)
    other = torch.randn(2, 5, WIDTH)
    swapped = interventions.swap(u, other)(x)
    assert torch.allclose(swapped @ unit, other @ unit, atol=1e-5)
    assert torch.allclose(swapped - (swapped @ unit)[..., None] * unit, x - (x @ unit)[..., None] * unit, atol=1e-5)
    with pytest.raises(UserError, match="norm zero"):
        interventions.project_out(torch.zeros(WIDTH))


def test_places_are_counted_from_the_beginning_of_the_text():
    assert Places().within(0, 5) == slice(0, 5)
    assert Places(3).within(0, 5) == slice(3, 5)
    assert Places(3).within(5, 1) == slice(0, 1)
    assert Places(3, 3).within(0, 5) == slice(3, 4)
    columns = Places(3, 3).within(5, 1)
    assert len(range(1)[columns]) == 0


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("places", [Places(), Places(4), Places(4, 4)])
def test_resumed_is_what_hooks_and_the_bridge_say(model, bridge, layer, places):
    ids, moved = prompts(), vector(size=1.0)
    edits = {layer: interventions.add(moved)}
    with torch.no_grad():
        plain = model(ids).logits
        with interventions.applied(model, edits, places):
            hooked = model(ids).logits
        assert hooks_of(model) == 0
        resumed = interventions.Resumed(model, ids, places.first)
        columns = places.within(places.first, ids.shape[1] - places.first)

        def edit(hidden):
            changed = hidden.clone()
            changed[:, :, columns] += torch.stack([moved, 0 * moved])[:, None, None]
            return changed

        hidden = resumed.run({layer: edit}, repeats=2)
        found = resumed.logits(hidden, range(places.first, ids.shape[1]))
    assert torch.allclose(found[0], hooked[:, places.first :], atol=1e-4)
    assert torch.allclose(found[1], plain[:, places.first :], atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    with torch.inference_mode(), interventions.applied_to_bridge(bridge, edits, places):
        reference = bridge(ids)
    assert torch.allclose(reference, hooked, atol=1e-3)


def test_a_range_of_layers(model):
    ids, moved = prompts(), vector(size=0.5)
    edits = {layer: interventions.add(moved) for layer in (1, 2)}
    with torch.no_grad():
        with interventions.applied(model, edits, Places(2, 2)):
            hooked = model(ids).logits

        def edit(hidden):
            changed = hidden.clone()
            changed[:, :, 0] += moved
            return changed

        resumed = interventions.Resumed(model, ids, 2)
        found = resumed.logits(resumed.run({1: edit, 2: edit}), [6])
    assert torch.allclose(found[0, :, 0], hooked[:, -1], atol=1e-4)


@pytest.mark.parametrize("places", [Places(), Places(6), Places(6, 6)])
def test_the_cache_changes_no_token(model, places):
    ids = prompts(4)
    edits = {1: interventions.add(vector())}
    found = interventions.generate_checked(model, ids, 8, edits, places)
    plain = interventions.generate(model, ids, 8)
    assert found.shape == (4, 8)
    assert not torch.equal(found, plain)
    assert hooks_of(model) == 0


def test_a_place_counted_from_the_end_of_the_pass_is_found_out(model, monkeypatch):
    monkeypatch.setattr(Places, "within", lambda self, start, length: slice(length - 1, length))
    with pytest.raises(UserError, match="differently with and without the key-value cache"):
        interventions.generate_checked(model, prompts(4), 8, {1: interventions.add(vector(size=6.0))}, Places())
    assert hooks_of(model) == 0


def test_hooks_are_gone_after_an_error(model, bridge):
    class Stop(Exception):
        pass

    with pytest.raises(Stop), interventions.applied(model, {1: interventions.add(vector())}, Places()):
        raise Stop
    assert hooks_of(model) == 0
    with pytest.raises(Stop), interventions.applied_to_bridge(bridge, {1: interventions.add(vector())}, Places()):
        raise Stop
    point = bridge.hook_dict["blocks.0.hook_out"]
    assert not point.fwd_hooks
    assert not point._forward_hooks


def test_no_nesting_over_hooks_of_others(model, bridge):
    edits = {1: interventions.add(vector())}
    with (
        interventions.applied(model, edits, Places()),
        pytest.raises(UserError, match="already has hooks"),
        interventions.applied(model, edits, Places()),
    ):
        pass
    handle = activations.decoder_blocks(model)[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="already has hooks"), interventions.applied(model, edits, Places()):
        pass
    handle.remove()
    assert hooks_of(model) == 0
    with (
        interventions.applied_to_bridge(bridge, edits, Places()),
        pytest.raises(UserError, match="already has hooks"),
        interventions.applied_to_bridge(bridge, edits, Places()),
    ):
        pass


def test_a_nested_run_with_cache_is_steered_and_takes_no_hook_off(bridge):
    ids, edits = prompts(), {1: interventions.add(vector())}
    with torch.inference_mode():
        with interventions.applied_to_bridge(bridge, edits, Places()):
            expected = bridge(ids)
        plain = bridge(ids)
        with interventions.applied_to_bridge(bridge, edits, Places()):
            nested, _ = bridge.run_with_cache(ids, names_filter=lambda name: name == "blocks.0.hook_out")
            afterwards = bridge(ids)
    assert torch.allclose(nested, expected, atol=1e-4)
    assert torch.allclose(afterwards, expected, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-2)


def test_hooks_that_somebody_took_off_are_missed(model, bridge):
    edits = {1: interventions.add(vector())}
    with (
        pytest.raises(UserError, match="removed while they were in use"),
        interventions.applied_to_bridge(bridge, edits, Places()),
    ):
        bridge.hook_dict["blocks.0.hook_out"].remove_hooks()
    with (
        pytest.raises(UserError, match="removed while they were in use"),
        interventions.applied(model, edits, Places()),
    ):
        activations.decoder_blocks(model)[0]._forward_hooks.clear()
    assert hooks_of(model) == 0


def test_a_layer_that_does_not_exist(model):
    with (
        pytest.raises(UserError, match="no layer 4 to steer; there are 0 to 3"),
        interventions.applied(model, {4: interventions.add(vector())}, Places()),
    ):
        pass
