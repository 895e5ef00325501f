"""Lesson 11: what is replaced and what is left, ties and shared layers, the tree pictures, and the lesson's figures."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from course import helper
from course.exercises import find_exercise
from course.exercises.judge import judge
from course.figures import lesson_11 as figures
from course.models import load_encoder
from qlib import QLinear, Scheme, quantize_model, replace_linear
from qlib.model import choose_layers, is_ignored, layers_to_quantize, places_of, tensors_of
from qlib.report import state_dict_bytes

INT8 = Scheme(bits=8)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}


def llama(tied=True, **sizes):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **sizes}, **heads)).eval()


def opt():
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    config = transformers.OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=16)
    return transformers.OPTForCausalLM(config).eval()


def bytes_of(model):
    return state_dict_bytes(tensors_of(model))


def whys(model, ignore=()):
    return {layer.name: layer.why for layer in choose_layers(model, ignore)[1]}


class Branches(nn.Module):
    """One linear layer in two branches, and one of its own."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(4, 4)
        self.first = nn.Sequential(shared, nn.ReLU(), shared)
        self.second = nn.ModuleDict({"proj": shared, "out": nn.Linear(4, 2)})

    def forward(self, x):
        return self.second["out"](self.second["proj"](self.first(x)))


# ---------------------------------------------------------------- ties and shared layers


@pytest.mark.parametrize("make", [llama, opt], ids=["llama", "opt"])
@pytest.mark.parametrize("ignore", [(), ("lm_head",)], ids=["nothing ignored", "head ignored"])
def test_a_tied_head_is_left_whether_it_is_ignored_or_not_and_the_report_says_so(make, ignore):
    model = make()
    embedding = model.get_input_embeddings()
    report = quantize_model(model, INT8, ignore=ignore, progress=False)
    assert model.lm_head.weight is embedding.weight
    why = {layer.name: layer.why for layer in report.skipped}
    assert why["lm_head"].startswith("tied to ") and why["lm_head"].endswith("embed_tokens.weight")
    assert report.bytes_after == bytes_of(model)


def test_replacing_a_tied_head_adds_its_integers_and_a_copy_doubles_the_matrix():
    model = llama(num_hidden_layers=1)
    sizes = []
    for excluded in (["lm_head"], []):
        replaced = copy.deepcopy(model)
        helper.replace_linear_with_target(replaced, helper.W8A16LinearLayer, excluded)
        sizes.append(bytes_of(replaced))
    assert sizes[1] - sizes[0] == 512 * 32 + 512 * 4 == 18432
    before = bytes_of(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    assert bytes_of(model) - before == 512 * 32 * 4 == 65536


def test_linear_layers_that_are_tied_to_one_another_are_both_left():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    assert layers_to_quantize(model, ()) == ["c"]
    assert whys(model) == {"a": "tied to b.weight", "b": "tied to a.weight"}


def test_a_layer_in_three_places_is_quantized_once_and_stays_one():
    model = Branches().eval()
    x = torch.linspace(-1, 1, 8).view(2, 4)
    before = model(x)
    report = quantize_model(model, INT8, progress=False)
    assert [layer.name for layer in report.quantized] == ["first.0", "second.out"] and not report.skipped
    assert isinstance(model.first[0], QLinear)
    assert model.first[0] is model.first[2] is model.second["proj"]
    assert report.bytes_after == bytes_of(model) < report.bytes_before
    assert torch.allclose(model(x), before, atol=0.05)


def test_the_structure_of_shared_layers_is_replaced_alike():
    quantized, empty = Branches(), Branches()
    quantize_model(quantized, INT8, progress=False)
    assert replace_linear(empty, INT8) == ["first.0", "second.out"]
    assert empty.first[0] is empty.first[2] is empty.second["proj"]
    empty.load_state_dict(quantized.state_dict())
    x = torch.linspace(-1, 1, 8).view(2, 4)
    assert torch.equal(empty(x), quantized(x))


def test_all_places_of_a_module_are_known_under_each_of_its_names():
    places = places_of(Branches())
    assert places["first.0"] == places["second.proj"] == ["first.0", "first.2", "second.proj"]
    assert places["second.out"] == ["second.out"] and places[""] == [""]


# ---------------------------------------------------------------- what is left, and why


def test_every_module_with_a_matrix_is_quantized_or_has_a_reason():
    attention = nn.MultiheadAttention(8, 2)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.ModuleDict({"attention": attention, "normed": normed, "head": nn.Linear(8, 4), "up": nn.Linear(8, 8)})
    assert layers_to_quantize(model, ("head",)) == ["up"]
    assert whys(model, ("head",)) == {
        "attention": "not a linear layer: MultiheadAttention",
        "attention.out_proj": "not a linear layer: NonDynamicallyQuantizableLinear",
        "normed.parametrizations.weight": "not a linear layer: ParametrizationList",
        "head": "ignored",
    }
    assert whys(nn.Linear(2, 2)) == {"": "the model itself: use QLinear.from_linear"}


def test_pytorchs_own_transformer_computes_on():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.linspace(-1, 1, 48).view(2, 3, 8)
    before = layer(x)
    report = quantize_model(layer, INT8, progress=False)
    assert [quantized.name for quantized in report.quantized] == ["linear1", "linear2"]
    assert torch.nn.functional.cosine_similarity(before.flatten(), layer(x).flatten(), dim=0) > 0.99


def test_replaced_layers_keep_the_mode_of_the_old_ones():
    for train in (True, False):
        model = Branches().train(train)
        replace_linear(model, INT8)
        assert all(module.training is train for module in model.modules())


def test_a_name_is_matched_whole_or_at_its_end_and_never_in_part():
    linear = nn.Linear(2, 2)
    assert is_ignored("model.lm_head", linear, ["lm_head"]) and is_ignored("lm_head", linear, "lm_head")
    assert not is_ignored("layers.0.up_proj", linear, ["proj"]) and not is_ignored("gate_up", linear, ["up"])
    assert is_ignored("layers.0.up_proj", linear, ["*proj"])


# ---------------------------------------------------------------- the course's names


def test_the_courses_function_replaces_the_structure_and_its_kin_quantizes_too():
    model = opt()
    ids = torch.tensor([[3, 5, 7, 9]])
    before = model(ids).logits
    helper.replace_linear_with_target_and_quantize(model, helper.W8A16LinearLayer, ["lm_head"])
    replaced = [name for name, layer in model.named_modules() if isinstance(layer, helper.W8A16LinearLayer)]
    assert len(replaced) == 6 and isinstance(model.lm_head, nn.Linear)
    assert torch.nn.functional.cosine_similarity(before.flatten(), model(ids).logits.flatten(), dim=0) > 0.99
    empty = opt()
    assert helper.replace_linear_with_target(empty, helper.W8A16LinearLayer, ["lm_head"]) is None
    assert empty.state_dict().keys() == model.state_dict().keys()
    assert not any(layer.training for layer in empty.modules())


def test_the_courses_quantizer_keeps_ties_and_shared_layers():
    tied, shared = llama(), Branches()
    helper.replace_linear_with_target_and_quantize(tied, helper.W8A16LinearLayer, [])
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    helper.replace_linear_with_target_and_quantize(shared, helper.W8A16LinearLayer, [])
    assert isinstance(shared.first[0], helper.W8A16LinearLayer)
    assert shared.first[0] is shared.first[2] is shared.second["proj"]


# ---------------------------------------------------------------- figures of the lesson


def test_conv1d_gets_a_scale_for_each_output():
    conv = Conv1D(96, 32)
    quantized = QLinear.from_linear(conv, INT8)
    assert (quantized.in_features, quantized.out_features) == (32, 96) and quantized.scale.shape == (96, 1)
    x = torch.linspace(-1, 1, 64).view(2, 32)
    assert (conv(x) - quantized(x)).abs().max() < 0.01 * conv(x).abs().max()


def test_eight_billion_parameters_are_replaced_without_memory():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).bfloat16()
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 8_030_261_248
    assert 0.12 < 2 * model.lm_head.weight.numel() / parameters < 0.135, "about an eighth"
    assert len(replace_linear(model, Scheme(bits=4, symmetric=False, group_size=64))) == 224
    assert all(tensor.is_meta for tensor in tensors_of(model).values() if tensor.numel())
    assert round(sum(t.nbytes for t in tensors_of(model).values()) / 1e9, 1) == 6.1


def test_the_encoders_bytes_are_mostly_those_of_its_embeddings():
    model, _ = load_encoder()
    report = quantize_model(model, Scheme(bits=4, symmetric=False, group_size=64), progress=False)
    assert (report.bytes_before, report.bytes_after) == (90_861_056, 54_027_008)
    assert len(report.quantized) == 37 and all(layer.bits_per_weight == 4.625 for layer in report.quantized)
    left = sum(layer.nbytes for layer in report.skipped)
    assert left == 47_671_296 and 0.88 < left / report.bytes_after < 0.9
    floor = report.bytes_after - sum(layer.bytes_after for layer in report.quantized)
    assert round(floor / 1e6, 1) == 47.8
    assert all(6.8 < layer.bytes_before / layer.bytes_after < 7.1 for layer in report.quantized)


# ---------------------------------------------------------------- pictures and messages


def boxes(picture, panel=0):
    """{text of a box's name: text of its kind} of a panel of a tree picture."""
    words = [text.get_text() for text in picture.figure.axes[panel].texts]
    return list(zip(words[::2], words[1::2], strict=True))


def test_a_tree_is_drawn_before_and_after():
    model = llama(tied=False)
    after = copy.deepcopy(model)
    quantize_model(after, Scheme(bits=4, group_size=16), progress=False)
    picture = figures.module_trees({"before": model, "after": after})
    assert ("0 … 1", "LlamaDecoderLayer") in boxes(picture), "neighbours that are alike are drawn once"
    assert ("up_proj", "Linear 32 → 64") in boxes(picture) and ("up_proj", "QLinear 32 → 64, 4-bit") in boxes(
        picture, 1
    )
    assert ("lm_head", "Linear 32 → 512") in boxes(picture, 1)
    assert "1 Embedding, 15 Linear, 5 LlamaRMSNorm" in picture.caption
    assert "14 QLinear" in picture.caption


def test_layers_that_differ_are_not_drawn_as_one():
    model = llama(tied=False)
    quantize_model(model, INT8, ignore=("lm_head", "model.layers.0.*"), progress=False)
    names = [name for name, _ in boxes(figures.module_trees({"half": model}))]
    assert "0" in names and "1" in names and "0 … 1" not in names


def test_a_tree_shows_ties_shared_layers_and_conv1d():
    tied = figures.module_trees({"tied": llama()})
    assert ("lm_head", "Linear 32 → 512, tied") in boxes(tied)
    assert "; model.embed_tokens and lm_head share a weight; " in tied.caption
    shown = boxes(figures.module_trees({"shared": Branches()}))
    assert ("2", "the same layer as first.0") in shown and ("proj", "the same layer as first.0") in shown
    assert ("0", "Linear 4 → 4") in shown
    conv = nn.ModuleDict({"c_attn": Conv1D(96, 32)})
    assert ("c_attn", "Conv1D 32 → 96") in boxes(figures.module_trees({"gpt2": conv}))


def test_modules_without_weights_can_be_left_out_of_a_tree_and_the_caption_says_so():
    picture = figures.module_trees({"branches": Branches()}, weightless=False)
    assert "ReLU" not in dict(boxes(picture)).values()
    assert picture.caption.endswith("Modules without weights are not drawn.")


def test_a_model_on_meta_has_a_tree_too():
    with torch.device("meta"):
        assert figures.module_trees({"empty": llama()}).caption.endswith("; on meta.")


def test_a_wrong_tree_is_told_by_its_first_wrong_layer():
    verdict = judge(find_exercise("11.1"), lambda module, target_class, module_name_to_exclude: module)
    told = "With two linear layers and a ReLU, nothing excluded: up is a Linear, expected New(4, 6, True, float32)."
    assert verdict.message.startswith(told)
