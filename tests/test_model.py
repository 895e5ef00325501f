"""quantize_model and replace_linear on small models of real kinds: what is replaced, what is left, what it costs."""

import copy
import re

import accelerate
import pytest
import torch
import transformers

from qlib import Scheme
from qlib.linear import QLinear
from qlib.model import quantize_model, replace_linear, tensors_of
from qlib.report import state_dict_bytes

SCHEME = Scheme(bits=4, symmetric=False, group_size=16)
IDS = torch.tensor([[1, 5, 9, 3]])


def llama(tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(("make", "layers"), [(lambda: llama(True), 14), (lambda: llama(False), 14), (gpt2, 8)])
def test_every_linear_layer_is_replaced_and_the_model_computes_on(make, layers):
    model = make()
    before = model(IDS).logits
    report = quantize_model(model, Scheme(bits=8), progress=False)
    assert sum(isinstance(module, QLinear) for module in model.modules()) == len(report.quantized) == layers
    assert torch.nn.functional.cosine_similarity(before.flatten(), model(IDS).logits.flatten(), dim=0) > 0.99


def test_the_report_counts_the_bytes_that_are_there():
    model = llama(tied=False)
    floats = {name: tensor.nbytes for name, tensor in tensors_of(model).items()}
    report = quantize_model(model, SCHEME, progress=False)
    assert report.bytes_before == sum(floats.values())
    assert report.bytes_after == state_dict_bytes(tensors_of(model)) < report.bytes_before
    saved = sum(layer.bytes_before - layer.bytes_after for layer in report.quantized)
    assert report.bytes_before - report.bytes_after == saved
    assert all(layer.bits_per_weight == 4 + 40 / 16 for layer in report.quantized)
    assert all(15 < layer.sqnr < 30 for layer in report.quantized)
    assert "14 layers quantized; 2 left as they were" in repr(report)
    assert "<table" in report._repr_html_()


def test_a_tied_head_stays_tied_and_is_never_counted_twice():
    model = llama(tied=True)
    report = quantize_model(model, SCHEME, ignore=(), progress=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    why = {layer.name: layer.why for layer in report.skipped}
    assert why == {
        "model.embed_tokens": "not a linear layer: Embedding",
        "lm_head": "tied to model.embed_tokens.weight",
    }
    embedding = model.lm_head.weight.nbytes
    assert report.bytes_after < report.bytes_before - embedding


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("lm_head", 14),
        (("lm_head", "q_proj"), 12),
        (("lm_head", "*.mlp.*"), 8),
        (("model.layers.0.self_attn.q_proj",), 14),
        (lambda name, layer: layer.out_features == 48, 11),
        ((), 15),
        (None, 15),
        (re.compile(r"(up|down)_proj|head$"), 10),
        (["lm_head", re.compile("layers.0"), lambda name, layer: name.endswith("q_proj")], 6),
    ],
    ids=[
        "a name",
        "a last name",
        "a glob",
        "a full name",
        "a predicate",
        "nothing",
        "None",
        "an expression",
        "a mixture",
    ],
)
def test_what_to_leave_can_be_said_by_name_by_glob_and_by_predicate(ignore, left):
    assert len(replace_linear(llama(tied=False), SCHEME, ignore)) == left


def test_a_module_that_is_to_be_left_is_left_with_all_in_it():
    model = llama(tied=False)
    assert len(replace_linear(model, SCHEME, [model.lm_head, model.model.layers[0]])) == 7


@pytest.mark.parametrize("rule", ["q_porj", "model.layers.0", re.compile("^layers")])
def test_a_rule_that_matches_no_layer_is_said(rule):
    text = getattr(rule, "pattern", rule)
    with pytest.warns(
        UserWarning, match=f"{re.escape(repr(text))} in ignore matches no layer of this LlamaForCausalLM"
    ):
        replace_linear(llama(tied=False), SCHEME, ("lm_head", rule))


@pytest.mark.parametrize("ignore", [3, ["lm_head", 3], [None]])
def test_what_is_no_rule_is_refused(ignore):
    with pytest.raises(TypeError, match=r"ignore must be None or names, globs, .* not (3|None)"):
        quantize_model(llama(tied=False), SCHEME, ignore)


def test_the_structure_can_be_replaced_on_meta_and_filled_from_a_state_dict():
    model = llama(tied=False)
    with torch.device("meta"):
        empty = llama(tied=False)
    names = replace_linear(empty, SCHEME)
    report = quantize_model(model, SCHEME, progress=False)
    assert names == [layer.name for layer in report.quantized]
    assert all(t.is_meta for t in tensors_of(empty).values() if t.numel())
    filled = llama(tied=False)
    replace_linear(filled, SCHEME)
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled(IDS).logits, model(IDS).logits)


def test_a_weight_that_cannot_be_quantized_leaves_the_model_as_it_was():
    model = llama(tied=False)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.inf
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight cannot be quantized.*\[3, 4\]"):
        quantize_model(model, SCHEME, progress=False)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_that_have_no_values_are_named_before_anything_is_touched():
    whole = llama(tied=False)
    accelerate.cpu_offload(whole.model.layers[1].mlp)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight is on the meta device.*offloaded"):
        quantize_model(whole, SCHEME)
    assert not any(isinstance(module, QLinear) for module in whole.modules())
    with pytest.raises(ValueError, match=r"up\.weight is on the meta device, where a tensor has no values"):
        QLinear.from_linear(torch.nn.Linear(8, 8, device="meta"), SCHEME, "up")


def test_an_all_quantized_model_still_has_a_first_parameter_in_its_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)).bfloat16()
    quantize_model(model, SCHEME)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_transformers_in_bfloat16_read_the_weight_in_bfloat16():
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).bfloat16().eval()
    quantize_model(model, SCHEME)
    assert model(torch.ones(1, 3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_to_tie_the_weights_of_a_quantized_model_again_changes_nothing():
    model = llama(tied=True)
    quantize_model(model, SCHEME, embeddings=True, ignore=())
    before = model(IDS).logits
    model.tie_weights()
    assert model.lm_head.packed is model.model.embed_tokens.packed
    assert torch.equal(model(IDS).logits, before)


def test_deberta_runs_under_autocast():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.DebertaV2Config(
        **sizes, vocab_size=64, relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=32
    )
    model = transformers.DebertaV2Model(config).eval()
    expected = model(IDS).last_hidden_state
    quantize_model(model, Scheme(8))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(IDS).last_hidden_state.float(), expected, rtol=0.1, atol=0.1)
