"""Weights in the layouts of compressed-tensors, GPTQ and AWQ, and whole models as compressed-tensors reads them.

compressed-tensors itself is the oracle for its own layout and, through the converter it ships, for AWQ's. GPTQ's is
held against its bytes, worked by hand from AutoGPTQ's QuantLinear.pack, and against that loop written out again.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st

from qlib import QLinear, QTensor, Scheme, quantize_model, quantize_tensor
from qlib.export import (
    export_compressed_tensors,
    from_awq,
    from_compressed_tensors,
    from_gptq,
    to_awq,
    to_compressed_tensors,
    to_gptq,
)
from qlib.export.compressed_tensors import weight_arguments
from tests.families import tiny_family

EACH_MODE = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
IDS = torch.tensor([[1, 5, 9, 3, 40, 63]])


def weight(outputs, inputs, seed=0):
    values = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    return (values + 0.3) * torch.linspace(0.01, 2, outputs)[:, None]


def same(ours, theirs):
    """Whether two QTensors hold the same integers, scales and zero points."""
    return (
        ours.shape == theirs.shape
        and torch.equal(ours.packed, theirs.packed)
        and torch.equal(ours.scale, theirs.scale)
        and torch.equal(ours.zero_point, theirs.zero_point)
    )


@st.composite
def weights(draw, bits, outputs, inputs, full_groups, axes=(0,)):
    """A QTensor of random size; `outputs` and `inputs` are what the sizes are multiples of."""
    shape = (outputs * draw(st.integers(1, 5)), inputs * draw(st.integers(1, 5)))
    sizes = [g for g in range(1, shape[1] + 1) if shape[1] % g == 0 or not full_groups]
    group_size = draw(st.none() | st.sampled_from(sizes))
    axis = 0 if group_size else draw(st.sampled_from(axes))
    scheme = Scheme(draw(bits), draw(st.booleans()), axis=axis, group_size=group_size)
    return quantize_tensor(weight(*shape, seed=draw(st.integers(0, 9))), scheme)


# ---------------------------------------------------------------- compressed-tensors


def decompressed(tensors, scheme):
    """The weight that compressed-tensors itself reads."""
    arguments = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weight_arguments(scheme)))
    return PackedQuantizationCompressor.decompress(tensors, arguments)["weight"]


@given(weights(st.integers(2, 8), 1, 1, full_groups=True, axes=(0, None)))
def test_compressed_tensors_reads_the_very_weight(qtensor):
    tensors = to_compressed_tensors(qtensor)
    assert torch.equal(decompressed(tensors, qtensor.scheme), qtensor.dequantize())


@given(weights(st.integers(2, 8), 1, 1, full_groups=True))
def test_compressed_tensors_would_write_the_same_tensors(qtensor):
    ours = to_compressed_tensors(qtensor)
    arguments = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weight_arguments(qtensor.scheme)))
    zero_point = qtensor.zero_point.expand_as(qtensor.scale)
    state = {"weight": qtensor.dequantize(), "weight_scale": qtensor.scale, "weight_zero_point": zero_point}
    theirs = PackedQuantizationCompressor.compress(state, arguments)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype, key
        assert ours[key].is_contiguous()


@given(weights(st.integers(2, 8), 1, 1, full_groups=True))
def test_what_compressed_tensors_holds_comes_back(qtensor):
    assert same(from_compressed_tensors(to_compressed_tensors(qtensor), qtensor.scheme), qtensor)


def test_one_scale_for_the_whole_tensor_is_written_for_each_row():
    tensors = to_compressed_tensors(quantize_tensor(weight(3, 5), Scheme(axis=None)))
    assert tensors["weight_scale"].shape == (3, 1)


# ---------------------------------------------------------------- GPTQ


def packed_by_gptqs_loop(codes, bits):
    """What AutoGPTQ's loops do to (values, columns), for any width: value by value into words of 32 bits."""
    words = np.zeros((codes.shape[0] * bits // 32, codes.shape[1]), dtype=np.uint32)
    for i, values in enumerate(codes.astype(np.uint64)):
        word, offset = divmod(i * bits, 32)
        words[word] |= ((values << np.uint64(offset)) & np.uint64(2**32 - 1)).astype(np.uint32)
        if offset + bits > 32:
            words[word + 1] |= (values >> np.uint64(32 - offset)).astype(np.uint32)
    return torch.from_numpy(words.astype(np.int32))


def test_gptqs_bytes_worked_by_hand():
    """Row 0 of 32 integers -8, -7 … 7, -8 … has the codes 0, 1 … 15, 0 …: its first word is 0x76543210."""
    row = torch.arange(32) % 16 - 8
    values = torch.stack([row] + [torch.full((32,), 7)] * 31).to(torch.int8)
    zero_point = torch.tensor([[-5]] + [[0]] * 31, dtype=torch.int8)
    tensors = to_gptq(QTensor(values, torch.full((32, 1), 0.5), zero_point, Scheme(4, symmetric=False)))
    assert tensors["qweight"].shape == (4, 32)
    assert [f"{word & 0xFFFFFFFF:08x}" for word in tensors["qweight"][:, 0].tolist()] == ["76543210", "fedcba98"] * 2
    assert {word & 0xFFFFFFFF for word in tensors["qweight"][:, 1:].flatten().tolist()} == {0xFFFFFFFF}
    # Zero points -5 and 0 are the codes 3 and 8, less one 2 and 7; they run along the outputs.
    assert [f"{word:08x}" for word in tensors["qzeros"][0].tolist()] == ["77777772"] + ["77777777"] * 3
    assert tensors["scales"].shape == (1, 32) and tensors["scales"].dtype == torch.float16
    assert tensors["g_idx"].tolist() == [0] * 32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32, 24])
def test_gptq_packs_as_autogptqs_loop_does(bits, group_size):
    qtensor = quantize_tensor(weight(64, 96), Scheme(bits, False, group_size=group_size))
    qmin = -(2 ** (bits - 1))
    qtensor.zero_point.clamp_(min=qmin + 1)  # there must be one to take off
    tensors = to_gptq(qtensor, "gptq_v2")
    assert torch.equal(tensors["qweight"], packed_by_gptqs_loop((qtensor.values.int() - qmin).numpy().T, bits))
    zeros = (qtensor.zero_point.int() - qmin).numpy()
    assert torch.equal(tensors["qzeros"], packed_by_gptqs_loop(zeros, bits).T)
    assert torch.equal(to_gptq(qtensor)["qzeros"], packed_by_gptqs_loop(zeros - 1, bits).T)
    assert tensors["g_idx"].tolist() == [i // (group_size or 96) for i in range(96)]


def in_float16(qtensor):
    """The same QTensor with the scales that float16 can hold."""
    scale = qtensor.scale.half().float()
    return QTensor.from_packed(qtensor.packed, scale, qtensor.zero_point, qtensor.scheme, qtensor.shape)


@given(weights(st.sampled_from([2, 3, 4, 8]), 32, 32, full_groups=False))
def test_what_gptq_holds_comes_back(qtensor):
    tensors = to_gptq(qtensor, "gptq_v2")
    assert same(from_gptq(tensors, qtensor.scheme, "gptq_v2"), in_float16(qtensor))


@EACH_MODE
def test_what_gptq_holds_less_one_comes_back(symmetric):
    qtensor = quantize_tensor(weight(32, 64), Scheme(4, symmetric, group_size=16))
    tensors = to_gptq(qtensor)
    assert same(from_gptq(tensors, qtensor.scheme), in_float16(qtensor))
    assert not torch.equal(tensors["qzeros"], to_gptq(qtensor, "gptq_v2")["qzeros"])


def test_a_zero_point_at_the_smallest_integer_is_not_stored_less_one():
    positive = quantize_tensor(weight(32, 32).abs(), Scheme(4, symmetric=False))
    with pytest.raises(ValueError, match=r"layers\.0\.fc cannot be written for GPTQ: .*gptq_v2"):
        to_gptq(positive, name="layers.0.fc")
    tensors = to_gptq(positive, "gptq_v2")
    assert same(from_gptq(tensors, positive.scheme, "gptq_v2"), in_float16(positive))
    # A checkpoint that holds it all the same has wrapped around: all bits are set.
    wrapped = tensors | {"qzeros": torch.full_like(tensors["qzeros"], -1)}
    assert same(from_gptq(wrapped, positive.scheme), in_float16(positive))


def test_inputs_in_another_order_are_refused():
    qtensor = quantize_tensor(weight(32, 64), Scheme(4, group_size=32))
    tensors = to_gptq(qtensor)
    with pytest.raises(ValueError, match="g_idx does not cut the inputs into runs, per group of 32"):
        from_gptq(tensors | {"g_idx": tensors["g_idx"].flip(0)}, qtensor.scheme)


# ---------------------------------------------------------------- AWQ


def test_awqs_bytes_worked_by_hand():
    """Eight outputs with the codes 0 to 7: the word reads, from its highest nibble on, 7 5 3 1 6 4 2 0."""
    values = (torch.arange(8)[:, None].expand(8, 3) - 8).to(torch.int8)
    zero_point = (torch.arange(8)[:, None] - 6).to(torch.int8)
    tensors = to_awq(QTensor(values, torch.ones(8, 1), zero_point, Scheme(4, symmetric=False)))
    assert [[f"{word:08x}" for word in row] for row in tensors["qweight"].tolist()] == [["75316420"]] * 3
    assert [f"{word & 0xFFFFFFFF:08x}" for word in tensors["qzeros"][0].tolist()] == ["97538642"]


@given(weights(st.just(4), 8, 1, full_groups=True, axes=(0, None)))
def test_compressed_tensors_own_converter_reads_what_to_awq_writes(qtensor):
    """The real package's AWQ converter and our writer for compressed-tensors must meet in the same tensors."""
    ours = {f"fc.{key}": tensor for key, tensor in to_awq(qtensor).items()}
    converted = AutoAWQConverter(group_size=qtensor.scheme.group_size or qtensor.shape[1]).process(ours)
    asymmetric = Scheme(4, symmetric=False, group_size=qtensor.scheme.group_size)
    theirs = from_compressed_tensors({key.removeprefix("fc."): t for key, t in converted.items()}, asymmetric)
    assert torch.equal(theirs.values, qtensor.values)
    assert torch.equal(theirs.scale, qtensor.scale.half().float().expand_as(theirs.scale))
    assert torch.equal(theirs.zero_point, qtensor.zero_point.expand_as(theirs.scale))


@given(weights(st.just(4), 8, 1, full_groups=True))
def test_what_awq_holds_comes_back(qtensor):
    assert same(from_awq(to_awq(qtensor), qtensor.scheme), in_float16(qtensor))


# ---------------------------------------------------------------- what has no place


@pytest.mark.parametrize(
    ("to", "scheme", "shape", "why"),
    [
        (to_compressed_tensors, Scheme(4, axis=1), (32, 32), "no scale per column"),
        (to_compressed_tensors, Scheme(4, group_size=32), (32, 48), "48 inputs are no multiple of the group size 32"),
        (to_compressed_tensors, Scheme(4), (8,), "no matrix but of shape"),
        (to_gptq, Scheme(4, axis=1), (32, 32), "no scale per column"),
        (to_gptq, Scheme(5), (32, 32), "not 5 bits"),
        (to_gptq, Scheme(4), (32, 40), "32 x 40"),
        (to_gptq, Scheme(4), (40, 32), "40 x 32"),
        (to_awq, Scheme(4, axis=1), (32, 32), "no scale per column"),
        (to_awq, Scheme(8), (32, 32), "not 8 bits"),
        (to_awq, Scheme(4), (12, 32), "12 outputs"),
        (to_awq, Scheme(4, group_size=32), (32, 48), "48 inputs are no multiple of the group size 32"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_a_format_has_no_place_for_is_refused_by_name(to, scheme, shape, why):
    qtensor = quantize_tensor(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape), scheme)
    with pytest.raises(ValueError, match=rf"layers\.3\.fc cannot be written for [\w-]+: .*{why}"):
        to(qtensor, name="layers.3.fc")


@pytest.mark.parametrize("to", [to_gptq, to_awq])
@pytest.mark.parametrize("reach", [1e-9, 1e9])
def test_a_scale_that_float16_cannot_hold_is_refused(to, reach):
    with pytest.raises(ValueError, match=r"layers\.3\.fc: a scale of .* becomes .* in torch\.float16"):
        to(quantize_tensor(weight(32, 32) * reach, Scheme(4)), name="layers.3.fc")


@pytest.mark.parametrize(
    ("to", "back"), [(to_compressed_tensors, from_compressed_tensors), (to_gptq, from_gptq), (to_awq, from_awq)]
)
def test_a_missing_tensor_and_a_wrong_scheme_are_one_clear_error(to, back):
    scheme = Scheme(4, symmetric=False, group_size=16)
    tensors = to(quantize_tensor(weight(32, 64), scheme))
    for key in tensors:
        with pytest.raises(ValueError, match=f"'{key}' is missing"):
            back({other: tensor for other, tensor in tensors.items() if other != key}, scheme)
    with pytest.raises(ValueError, match=r"(scale|zero_point) is of shape|g_idx does not"):
        back(tensors, Scheme(4, symmetric=False, group_size=32))


@pytest.mark.parametrize(("to", "back"), [(to_gptq, from_gptq), (to_awq, from_awq)])
def test_zero_points_are_not_read_as_symmetric(to, back):
    tensors = to(quantize_tensor(weight(32, 64), Scheme(4, symmetric=False)))
    with pytest.raises(ValueError, match="zero points other than 0"):
        back(tensors, Scheme(4))


def test_the_word_for_gptqs_zero_points_must_be_known():
    with pytest.raises(ValueError, match="not 'v3'"):
        to_gptq(quantize_tensor(weight(32, 32), Scheme(4)), "v3")


# ---------------------------------------------------------------- whole models


def llama(dtype=torch.float32, tied=False, **changes):
    torch.manual_seed(0)
    options = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    options |= {"num_key_value_heads": 2, "vocab_size": 64, "attention_bias": True, "tie_word_embeddings": tied}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options | changes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros, else
            torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


def quantized(scheme, **options):
    model = llama(**options)
    quantize_model(model, scheme, progress=False)
    return model


def loaded(folder, **options):
    """The model as transformers and compressed-tensors load it, decompressed by its first forward."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    with torch.no_grad():
        model(IDS)
    return model


DEQUANTIZED = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def assert_same_logits(theirs, ours):
    """Equal but for the order of sums: the reader multiplies with float weights, and QLinear with packed ones."""
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-4, atol=1e-6)


def assert_same_weights(ours, theirs):
    """Each weight of `theirs` is what our QLinear stands for, to the bit; the rest is as it was."""
    layers = {name: layer for name, layer in ours.named_modules() if isinstance(layer, QLinear)}
    assert layers
    for name, layer in layers.items():
        assert torch.equal(theirs.get_submodule(name).weight, layer.qtensor.dequantize()), name
        if layer.bias is not None:
            assert torch.equal(theirs.get_submodule(name).bias, layer.bias)
    assert torch.equal(theirs.model.embed_tokens.weight, ours.model.embed_tokens.weight)
    assert torch.equal(theirs.model.layers[1].input_layernorm.weight, ours.model.layers[1].input_layernorm.weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, None], ids=["per group", "per channel"])
@EACH_MODE
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_transformers_loads_the_model_and_computes_the_same(tmp_path, bits, group_size, symmetric):
    model = quantized(Scheme(bits, symmetric, group_size=group_size))
    export_compressed_tensors(model, tmp_path / "model")
    # transformers 5.23 makes no place for packed zero points, and so loads them only to take them off at once.
    came_back = loaded(tmp_path / "model", **({} if symmetric else DEQUANTIZED))
    assert_same_weights(model, came_back)
    assert_same_logits(came_back, model)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_other_widths_are_loaded_too(tmp_path, bits):
    model = quantized(Scheme(bits, group_size=32))
    export_compressed_tensors(model, tmp_path / "model")
    came_back = loaded(tmp_path / "model")
    assert_same_weights(model, came_back)
    assert_same_logits(came_back, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_a_weight_differs_by_two_roundings_at_most(tmp_path, dtype):
    model = quantized(Scheme(4, group_size=32), dtype=dtype)
    export_compressed_tensors(model, tmp_path / "model")
    came_back = loaded(tmp_path / "model")
    assert came_back.dtype == dtype
    half_step = torch.finfo(dtype).eps / 2
    for name, layer in model.named_modules():
        if isinstance(layer, QLinear):
            exact = layer.qtensor.dequantize()
            found = came_back.get_submodule(name).weight
            assert found.dtype == dtype
            assert ((found.float() - exact).abs() <= 2.01 * half_step * exact.abs()).all()
    assert (logits(came_back) - logits(model)).abs().max() < 16 * half_step * logits(model).abs().max()


def test_the_scales_keep_float32_so_that_a_float32_load_is_exact(tmp_path):
    model = quantized(Scheme(4, group_size=32), dtype=torch.bfloat16)
    export_compressed_tensors(model, tmp_path / "model")
    came_back = loaded(tmp_path / "model", dtype=torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, QLinear):
            assert torch.equal(came_back.get_submodule(name).weight, layer.qtensor.dequantize())


def test_a_tied_head_stays_tied_and_is_stored_once(tmp_path):
    model = quantized(Scheme(8), tied=True)
    export_compressed_tensors(model, tmp_path / "model")
    came_back = loaded(tmp_path / "model")
    assert came_back.lm_head.weight is came_back.model.embed_tokens.weight
    assert_same_logits(came_back, model)


def test_layers_of_different_schemes_each_find_theirs(tmp_path):
    model = llama()
    quantize_model(model, Scheme(8), ignore=("lm_head", "*.mlp.*"), progress=False)
    quantize_model(model, Scheme(4, group_size=32), ignore=("lm_head", "*.1.mlp.*"), progress=False)
    export_compressed_tensors(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert [len(group["targets"]) for group in config["config_groups"].values()] == [8, 3]
    assert {"lm_head", "model.layers.1.mlp.up_proj"} <= set(config["ignore"])
    came_back = loaded(tmp_path / "model")
    assert_same_weights(model, came_back)
    assert_same_logits(came_back, model)


def test_what_the_config_says(tmp_path):
    export_compressed_tensors(quantized(Scheme(4, symmetric=False, group_size=32)), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    assert config["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights | {"dynamic": False}, "format": "pack-quantized"}
        },
        "ignore": ["lm_head"],
    }


def test_the_model_stays_as_it_was(tmp_path):
    model = quantized(Scheme(4, group_size=32))
    config, keys, before = copy.deepcopy(model.config), list(model.state_dict()), logits(model)
    export_compressed_tensors(model, tmp_path / "model")
    assert model.config.to_dict() == config.to_dict()
    assert list(model.state_dict()) == keys
    assert torch.equal(logits(model), before)


def opt():
    options = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "vocab_size": 64}
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(**options, num_attention_heads=4, max_position_embeddings=16)
    )


def gpt_neox():
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**options, vocab_size=64))


@pytest.mark.parametrize("make", [opt, gpt_neox], ids=["OPT", "GPT-NeoX"])
def test_other_models_come_back_the_same(tmp_path, make):
    torch.manual_seed(0)
    model = make().eval()
    quantize_model(model, Scheme(4, group_size=16), progress=False)
    export_compressed_tensors(model, tmp_path / "model")
    assert_same_logits(loaded(tmp_path / "model"), model)


def test_how_a_model_was_loaded_does_not_matter(tmp_path):
    """transformers remembers the quantizer that it loaded a model through, and would ask it what to save."""
    model = quantized(Scheme(8))
    model.hf_quantizer, model.config.quantization_config = object(), {"quant_method": "qlib"}
    export_compressed_tensors(model, tmp_path / "model")
    assert_same_logits(loaded(tmp_path / "model"), model)
    assert model.config.quantization_config == {"quant_method": "qlib"}


def test_a_large_model_is_written_in_several_files(tmp_path):
    model = quantized(Scheme(4, group_size=32))
    export_compressed_tensors(model, tmp_path / "model", max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert_same_logits(loaded(tmp_path / "model"), model)


def test_a_tokenizer_goes_with_the_model(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{}")

    export_compressed_tensors(quantized(Scheme(8)), tmp_path / "model", Tokenizer())
    assert (tmp_path / "model" / "tokenizer.json").exists()


# ---------------------------------------------------------------- what is refused, and what is left then


def refused(model, folder, why, error=ValueError):
    with pytest.raises(error, match=why):
        export_compressed_tensors(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_a_layer_that_the_format_has_no_place_for_is_named(tmp_path):
    folder = tmp_path / "model"
    refused(quantized(Scheme(4, group_size=64)), folder, r"layers\.0\.mlp\.down_proj cannot .* 96 inputs .* size 64")
    refused(quantized(Scheme(8, axis=1)), folder, r"layers\.0\.self_attn\.q_proj cannot .* no scale per column")
    refused(llama(), folder, "no layer of this LlamaForCausalLM is quantized")
    refused(torch.nn.Sequential(QLinear(4, 4, Scheme())), folder, "not a Sequential", error=TypeError)


@pytest.mark.parametrize("name", ["Falcon", "gpt_bigcode", "Mamba2", "Gemma3"])
def test_a_model_that_transformers_loads_as_floats_alone_is_exported_with_a_word(name, tmp_path):
    model, inputs = tiny_family(name)
    quantize_model(model, Scheme(8), progress=False)
    with pytest.warns(UserWarning, match=rf"loads this {type(model).__name__} only with .*dequantize=True"):
        export_compressed_tensors(model, tmp_path / "model")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    again = type(model).from_pretrained(tmp_path / "model", quantization_config=config).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-4)


def test_gpt_2s_layers_are_refused_for_they_are_conv1d(tmp_path):
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    quantize_model(model, Scheme(8), progress=False)
    refused(model, tmp_path / "model", r"transformer\.h\.0\.attn\.c_attn cannot .* Conv1D")


def test_experts_are_refused_packed_or_float_for_readers_take_them_for_quantized(tmp_path):
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**options, num_key_value_heads=2, num_local_experts=4, vocab_size=64)
    for ignore, why in (
        ("*.experts", "experts cannot .* float experts"),
        ((), r"experts\.gate_up_proj cannot .* not a QLinear"),
    ):
        model = transformers.MixtralForCausalLM(config).eval()
        quantize_model(model, Scheme(8), ignore, progress=False)
        refused(model, tmp_path / "model", rf"layers\.0\.mlp\.{why}")


def test_a_scale_that_the_models_dtype_cannot_hold_is_refused(tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1e-8
    quantize_model(model, Scheme(8), progress=False)
    export_compressed_tensors(model, tmp_path / "float32")
    (tmp_path / "half").mkdir()
    refused(model.half(), tmp_path / "half" / "model", r"layers\.0\.mlp\.up_proj: a scale of .* in torch\.float16")


def test_a_failed_export_leaves_the_older_folder_whole(tmp_path):
    folder = tmp_path / "model"
    model = quantized(Scheme(4, group_size=32))
    export_compressed_tensors(model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        export_compressed_tensors(quantized(Scheme(8)), folder, Broken())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
