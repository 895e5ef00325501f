"""Moving scales into weights: what a model computes stays, in models of many kinds, and where it cannot, it is said."""

import copy

import pytest
import torch

from qlib.linear import weight_of
from qlib.methods import DividedInput, channel_magnitudes, emulate_outliers, rescale_model, shared_inputs
from qlib.methods.calibration import visit_layers
from qlib.model import layers_to_quantize
from tests.tiny_models import MODELS, VOCABULARY, outputs, tiny_model

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))


def batch_for(model):
    """A batch that a tiny model takes."""
    generator = torch.Generator().manual_seed(3)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 40, generator=generator), "decoder_input_ids": IDS[:, :4]}
    if type(model).__name__ == "T5ForConditionalGeneration":
        return {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    return IDS


def uneven(weights, x):
    """A scale for each channel from 0.4 to 2.4, no two neighbours alike and no power of two among them."""
    return torch.linspace(0, 40, x.shape[-1]).sin() + 1.4


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_of_a_rescaled_model_stay_but_for_rounding(name, divide):
    model = tiny_model(name)
    before, weights = outputs(model), copy.deepcopy(model.state_dict())
    scales = rescale_model(model, batch_for(model), uneven, divide)
    for ours, theirs in zip(outputs(model), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    moved = [group for group, scale in scales.items() if scale is not None]
    assert moved
    after = model.state_dict()
    assert any(key not in after or not torch.equal(after[key], weight) for key, weight in weights.items())
    assert all(scale is not None for scale in scales.values()) or not divide


FOLDS = {
    "Llama": {"input_layernorm", "post_attention_layernorm", "up_proj"},
    "Llama, head tied": {"input_layernorm", "post_attention_layernorm", "up_proj", "v_proj"},
    "OPT": {"self_attn_layer_norm", "final_layer_norm", "fc1", "v_proj"},
    "GPT-2": {"ln_1", "ln_2"},
    "GPT-NeoX": {"input_layernorm", "post_attention_layernorm"},
    "BERT": {"value", "LayerNorm"},
    "Mixtral": {"input_layernorm"},
}


@pytest.mark.parametrize("name", FOLDS)
def test_the_layers_that_can_take_a_scale_are_found(name):
    model = tiny_model(name)
    before = copy.deepcopy(model.state_dict())
    groups = shared_inputs(model, IDS)
    assert {group.source.rpartition(".")[2] for group in groups if group.source} == FOLDS[name]
    readers = [layer for group in groups for layer in group.layers]
    assert sorted(readers) == sorted(layers_to_quantize(model, ()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_norm_that_a_residual_reads_too_takes_no_scale():
    groups = {group.layers[0]: group for group in shared_inputs(tiny_model("BERT"), IDS)}
    assert groups["bert.encoder.layer.0.intermediate.dense"].source is None
    assert groups["bert.encoder.layer.0.attention.output.dense"].source == "bert.encoder.layer.0.attention.self.value"
    assert "nothing before can take a scale" in str(groups["bert.encoder.layer.0.output.dense"])


def test_the_layers_that_read_one_tensor_share_a_scale():
    groups = shared_inputs(tiny_model("Llama"), IDS)
    attention = [name.rpartition(".")[2] for name in groups[0].layers]
    assert attention == ["q_proj", "k_proj", "v_proj"]
    assert str(groups[0]).endswith("v_proj: model.layers.0.input_layernorm")


def test_from_a_single_token_nothing_is_concluded_about_attention():
    # Its softmax is 1 whatever the query, so that any scale of the query would seem to leave the model as it was.
    sources = {group.source for group in shared_inputs(tiny_model("Llama, head tied"), IDS[:1, :1])}
    assert not any(source and source.endswith("_proj") for source in sources)


def test_ignored_layers_are_left():
    model = tiny_model("Llama")
    scales = rescale_model(model, IDS, uneven, ignore=("*.self_attn.*", "lm_head"))
    assert all("mlp" in group.layers[0] for group in scales)


def test_the_source_of_one_group_may_be_a_divided_layer_of_another():
    model = tiny_model("BERT")
    before = outputs(model)
    rescale_model(model, IDS, uneven, divide=True)
    assert isinstance(model.bert.encoder.layer[0].attention.self.value, DividedInput)
    torch.testing.assert_close(outputs(model)[0], before[0], rtol=1e-3, atol=1e-5)


def test_a_layer_is_visited_once_with_all_its_tokens_and_no_padding():
    model, seen = tiny_model("BERT"), {}
    names = layers_to_quantize(model, ())
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    batch = {"input_ids": IDS, "attention_mask": mask}
    visit_layers(model, batch, names, lambda name, layer, x: seen.update({name: x.shape}))
    assert next(iter(seen)) == names[0]
    inputs = weight_of(model.get_submodule(names[0]), names[0]).shape[1]
    assert seen[names[0]] == (9 + 4, inputs)


def test_an_input_that_is_not_finite_is_refused_and_no_hook_stays():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'0' holds a NaN"):
        channel_magnitudes(model, torch.tensor([[1.0, float("nan")]]))
    assert not model[0]._forward_hooks


def test_emulated_outliers_change_nothing_that_the_model_computes():
    model = tiny_model("Llama")
    before = outputs(model)
    channel, ratios = emulate_outliers(model, IDS, ratio=16.0)
    assert torch.equal(outputs(model)[0], before[0])
    assert len(ratios) == 2 * 5
    assert all(16 / 1.42 <= ratio <= 16 * 1.42 for ratio in ratios.values())
    magnitudes = channel_magnitudes(model, IDS)
    assert all(magnitudes[name].argmax() == channel for name in ratios)
