"""Layers of every kind, in models: what is saved comes back to the element, by load_quantized and by transformers."""

import copy
import json
import math

import pytest
import torch
import transformers

from qlib import QLinear, Scheme, load_quantized, quantize_checkpoint, quantize_model, replace_linear, save_quantized
from qlib.export import export_compressed_tensors, to_gptq
from qlib.hf import share_layer
from qlib.kinds import KINDS, entry_of, kind_of
from qlib.methods import (
    NF4,
    QLORA,
    DividedInput,
    Int8Linear,
    NF4Linear,
    awq_model,
    hqq_model,
    hqq_quantize,
    llm_int8_model,
    nf4_model,
    smoothquant_model,
)
from qlib.model import tensors_of
from qlib.report import file_bytes, state_dict_bytes
from tests.test_quantized_folders import edit_config, quiet, rewrite  # noqa: F401 - one is a fixture
from tests.tiny_models import MODELS, assert_same_outputs, outputs, tiny_model

IDS = torch.randint(3, 100, (4, 9), generator=torch.Generator().manual_seed(2))
UP = "model.layers.0.mlp.up_proj"
EVEN = Scheme(bits=4, group_size=32)


def uneven(bits, group_size=32):
    return Scheme(bits, symmetric=False, group_size=group_size)


def all_kinds(model):
    """A layer of one kind beside one of another: LLM.int8() after a rescale, NF4 of two sorts, HQQ, and rounding."""
    smoothquant_model(model, IDS, ignore=("lm_head", "*mlp*", "*.intermediate.*", "*.output.*"), divide=True)
    nf4_model(model, QLORA, ignore=("lm_head", "*.down_proj", "*.up_proj", "*.1.*"))
    nf4_model(model, NF4(24, double=False), ignore=("lm_head", "*.up_proj", "*.1.*"))
    hqq_model(model, uneven(3), ignore=("lm_head", "*.1.*.up_proj", "*.1.*.gate_proj"))
    return quantize_model(model, EVEN, ignore=())


WAYS = {
    "NF4": nf4_model,
    "NF4, its absmaxes in float32": lambda model: nf4_model(model, NF4(double=False)),
    "NF4, ragged blocks": lambda model: nf4_model(model, NF4(24)),
    "HQQ, 4 bits": lambda model: hqq_model(model, uneven(4)),
    "HQQ, 3 bits": lambda model: hqq_model(model, uneven(3)),
    "HQQ, 2 bits, ragged groups": lambda model: hqq_model(model, uneven(2, 24)),
    "HQQ, float32": lambda model: hqq_model(model, uneven(2), torch.float32),
    "HQQ, whole zero points": lambda model: hqq_model(model, uneven(4), torch.int8),
    "LLM.int8()": lambda model: llm_int8_model(model, threshold=1.5),
    "SmoothQuant": lambda model: smoothquant_model(model, IDS, per_token=False),
    "SmoothQuant, inputs divided": lambda model: smoothquant_model(model, IDS, divide=True),
    "AWQ": lambda model: awq_model(model, EVEN, IDS),
    "HQQ, then LLM.int8()": lambda model: (
        hqq_model(model, Scheme(8, symmetric=False)),
        llm_int8_model(model),
    ),
    "all kinds": all_kinds,
}


def stored_bytes(folder, layer):
    """The bytes that a layer's weight takes in the file, told by the header alone."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    places = [entry["data_offsets"] for key, entry in header.items() if key.startswith(f"{layer}.")]
    biases = [entry["data_offsets"] for key, entry in header.items() if key == f"{layer}.bias"]
    return sum(end - start for start, end in places) - sum(end - start for start, end in biases)


@pytest.mark.parametrize("name", ["Llama", "BERT", "GPT-2"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_loaded_computes_what_was_saved(way, name, tmp_path):
    model = tiny_model(name)
    WAYS[way](model)
    save_quantized(model, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved")
    assert_same_outputs(model, loaded)
    assert repr(loaded) == repr(model)
    assert state_dict_bytes(tensors_of(loaded)) == state_dict_bytes(tensors_of(model))

    by_transformers = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path / "saved").eval()
    assert_same_outputs(model, by_transformers)
    by_transformers.save_pretrained(tmp_path / "again")
    assert_same_outputs(model, load_quantized(tmp_path / "again"))


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith(("NF4", "HQQ, ")) and "then" not in way])
def test_a_report_counts_the_bytes_that_are_in_the_file(way, tmp_path):
    model = tiny_model("Llama")
    report = WAYS[way](model)
    save_quantized(model, tmp_path / "model")
    for layer in report.quantized:
        assert layer.bytes_after == stored_bytes(tmp_path / "model", layer.name)
        weights = model.get_submodule(layer.name).weight.numel()
        assert layer.bits_per_weight == 8 * layer.bytes_after / weights
        assert f"{layer.bits_per_weight:.3f} bits per weight" in repr(model.get_submodule(layer.name))
    in_memory = state_dict_bytes(model.state_dict())
    assert report.bytes_after == state_dict_bytes(tensors_of(model))
    assert in_memory <= file_bytes(tmp_path / "model" / "model.safetensors") < in_memory + 12000  # the header


def test_a_mixed_model_has_layers_of_every_kind_and_config_json_says_which(tmp_path):
    model = tiny_model("Llama")
    all_kinds(model)
    save_quantized(model, tmp_path / "model")
    layers = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["layers"]
    assert {layer.get("kind", "qlinear") for layer in layers.values()} == set(KINDS)
    assert layers["model.layers.0.self_attn.q_proj"] == {
        **{"kind": "llm_int8", "bits": 8, "symmetric": True, "axis": 0, "group_size": None},
        **{"threshold": None, "per_token": True},
    }
    assert layers["model.layers.0.self_attn.o_proj"] == {"kind": "divided_input"}
    assert layers["model.layers.0.mlp.gate_proj"] == {"kind": "nf4", "block_size": 64, "double": True}
    assert layers["model.layers.0.mlp.down_proj"] == {"kind": "nf4", "block_size": 24, "double": False}
    hqq = {"bits": 3, "symmetric": False, "axis": 0, "group_size": 32, "zero_dtype": "float16"}
    assert layers[UP] == hqq
    assert layers["model.layers.1.mlp.up_proj"] == {"bits": 4, "symmetric": True, "axis": 0, "group_size": 32}


def test_int8_layers_come_back_with_their_settings(tmp_path):
    for threshold, per_token in ((2.5, True), (math.inf, False)):
        model = tiny_model("Llama")
        llm_int8_model(model, threshold=threshold, per_token=per_token)
        save_quantized(model, tmp_path / "model")
        layer = load_quantized(tmp_path / "model").get_submodule(UP)
        assert type(layer) is Int8Linear and (layer.threshold, layer.per_token) == (threshold, per_token)


def test_a_divided_input_comes_back_around_a_float_layer_too(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    structure = copy.deepcopy(net)
    net[1] = DividedInput(net[1], torch.linspace(0.5, 2, 8))
    quantize_model(net, Scheme(), ignore=("1.layer",))
    save_quantized(net, tmp_path / "net")
    loaded, x = load_quantized(tmp_path / "net", structure), torch.linspace(-1, 1, 16).reshape(2, 8)
    assert type(loaded[1].layer) is torch.nn.Linear
    assert torch.equal(loaded(x), net(x))


def test_a_layer_in_two_places_comes_back_as_one(tmp_path):
    layer = torch.nn.Linear(8, 8)
    net = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    structure = copy.deepcopy(net)
    net[0] = net[2] = DividedInput(NF4Linear.from_linear(layer), torch.linspace(0.5, 2, 8))
    save_quantized(net, tmp_path / "net")
    loaded, x = load_quantized(tmp_path / "net", structure), torch.linspace(-1, 1, 16).reshape(2, 8)
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
@pytest.mark.parametrize("scheme", [QLORA, NF4(24, double=False)], ids=str)
def test_a_checkpoint_is_quantized_to_nf4_one_tensor_at_a_time(scheme, name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    names = quantize_checkpoint(tmp_path / "float", tmp_path / "model", scheme)
    model = tiny_model(name)
    assert names == [layer.name for layer in nf4_model(model, scheme).quantized]
    assert_same_outputs(model, load_quantized(tmp_path / "model"))
    by_transformers = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path / "model").eval()
    assert_same_outputs(model, by_transformers)


def test_no_other_scheme_is_taken_for_a_checkpoint(tmp_path):
    with pytest.raises(TypeError, match=r"scheme must be a qlib\.Scheme, such as Scheme\(bits=8\), or an NF4, not 4"):
        quantize_checkpoint(tmp_path, tmp_path / "model", 4)


# ---------------------------------------------------------------- moved, copied and filled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_is_for_the_rest_of_a_model_and_not_for_its_weights(dtype, tmp_path):
    model = tiny_model("BERT")
    all_kinds(model)
    weights = {name: m.weight for name, m in model.named_modules() if kind_of(m)}
    cast = copy.deepcopy(model).to(dtype)
    assert cast.bert.embeddings.LayerNorm.weight.dtype == dtype
    for name, weight in weights.items():
        assert torch.equal(cast.get_submodule(name).weight, weight)
        assert entry_of(cast.get_submodule(name)) == entry_of(model.get_submodule(name))
    save_quantized(cast, tmp_path / "model")
    by_transformers = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model", dtype=dtype)
    for loaded in (load_quantized(tmp_path / "model"), by_transformers):
        torch.testing.assert_close(loaded.state_dict(), cast.state_dict(), rtol=0, atol=0)
        assert outputs(loaded)[0].dtype == dtype


@pytest.mark.parametrize("way", ["NF4", "HQQ, 3 bits", "LLM.int8()", "all kinds"])
def test_a_copy_and_a_state_dict_keep_everything(way):
    model = tiny_model("Llama")
    WAYS[way](model)
    again = copy.deepcopy(model)
    assert_same_outputs(model, again)
    for tensor in again.state_dict().values():
        tensor.zero_()
    again.load_state_dict(model.state_dict())
    assert_same_outputs(model, again)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fractions_are_not_cut_off_on_their_way_into_an_empty_model(device, assign):
    model, empty = tiny_model("Llama"), tiny_model("Llama")
    hqq_model(model, uneven(3))
    replace_linear(empty.to(device), uneven(3))
    if device == "meta" and not assign:
        empty = empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), assign=assign)
    for name, layer in empty.named_modules():
        if isinstance(layer, QLinear):
            assert layer.zero_point.dtype == torch.float16
            assert torch.equal(layer.weight, model.get_submodule(name).weight)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_of_fractions_computes_the_plain_formula(bits, dtype, rows):
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    qtensor = hqq_quantize(weight, uneven(bits, 64))
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    groups = qtensor.values.reshape(24, 4, 64).float() - qtensor.zero_point.float().unsqueeze(-1)
    plain = (groups * qtensor.scale.unsqueeze(-1)).reshape(24, 256)
    assert torch.equal(qtensor.dequantize(), plain)
    assert (plain != qtensor.scale.repeat_interleave(64, 1) * qtensor.values.float()).any()
    torch.testing.assert_close(QLinear.from_qtensor(qtensor)(x), torch.nn.functional.linear(x, plain.to(dtype)))


def test_a_layer_says_that_its_zero_points_are_fractions():
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    hqq_model(model, uneven(3, 64))
    assert "3-bit asymmetric, per group of 64, float16 zero points, 3.750 bits per weight" in repr(model)


# ---------------------------------------------------------------- one clear error


@pytest.fixture
def folder(tmp_path):
    """Layer 0's up_proj has float16 zero points; layer 1's whole ones."""
    model = tiny_model("Llama")
    hqq_model(model, uneven(3), ignore=("lm_head", "*.1.*"))
    hqq_model(model, uneven(3), torch.int8)
    save_quantized(model, tmp_path / "model")
    return tmp_path / "model"


def set_entry(**settings):
    return lambda f: edit_config(f, lambda c: c["quantization_config"]["layers"].update({UP: settings}))


ZERO = f"{UP}.zero_point"
WHOLE = ZERO.replace("layers.0", "layers.1")
BROKEN_ENTRIES = {
    "an unknown kind": (
        set_entry(kind="vector", codes=8),
        r"its kind is 'vector', which this qlib does not know; it knows divided_input, nf4, llm_int8, qlinear",
    ),
    "a kind that is no word": (set_entry(kind=["nf4"]), "unhashable"),
    "a setting of another kind": (set_entry(kind="nf4", bits=4), "unexpected keyword argument 'bits'"),
    "an impossible block size": (set_entry(kind="nf4", block_size=0), "group_size must be a whole number"),
    "an impossible zero point": (
        set_entry(bits=3, symmetric=False, group_size=32, zero_dtype="float8"),
        "zero_dtype must be one of int8, float16, bfloat16, float32, not 'float8'",
    ),
    "a threshold in words": (
        set_entry(kind="llm_int8", threshold="six", per_token=True),
        "threshold must be a number or null, per_token a bool, not 'six' and True",
    ),
    "a threshold of no layer": (set_entry(kind="llm_int8"), "missing 2 required positional arguments: 'threshold'"),
    "groups that no integer sum can bear": (
        set_entry(kind="llm_int8", threshold=6.0, per_token=True, group_size=32),
        "an integer sum needs one scale for all the inputs of a row",
    ),
}


@pytest.mark.parametrize("what", BROKEN_ENTRIES)
def test_a_broken_entry_gives_one_error_that_names_file_layer_and_kind(what, folder):
    break_it, message = BROKEN_ENTRIES[what]
    break_it(folder)
    for load in (load_quantized, transformers.LlamaForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=rf"config\.json.*layer '{UP}': .*{message}"):
            load(folder)


BROKEN_TENSORS = {
    "zero points are missing": (lambda t: t.pop(ZERO), rf"lacks '{ZERO}', which a LlamaForCausalLM needs"),
    "whole zero points for fractions": (
        lambda t: t.update({ZERO: t[ZERO].to(torch.int8)}),
        rf"{ZERO} is torch\.int8; the model needs torch\.float16",
    ),
    "fractions for whole zero points": (
        lambda t: t.update({WHOLE: t[WHOLE].half()}),
        rf"{WHOLE} is torch\.float16; the model needs torch\.int8",
    ),
    "zero points of another shape": (
        lambda t: t.update({ZERO: t[ZERO][:, :1].contiguous()}),
        rf"{ZERO} is of shape \(96, 1\); the model needs \(96, 2\)",
    ),
}


@pytest.mark.parametrize("what", BROKEN_TENSORS)
def test_broken_zero_points_give_one_clear_error(what, folder):
    change, message = BROKEN_TENSORS[what]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_quantized(folder)


def test_nf4_whose_parts_are_not_those_of_its_entry_is_refused(tmp_path):
    model = tiny_model("Llama")
    nf4_model(model)
    for change, message in (
        ({"double": False}, rf"{UP}\.absmax is of shape \(96,\); the model needs \(96, 1\)"),
        ({"block_size": 32}, rf"{UP}\.absmax is of shape \(96,\); the model needs \(192,\)"),
    ):
        save_quantized(model, tmp_path / "model")
        edit_config(tmp_path / "model", lambda c: c["quantization_config"]["layers"][UP].update(change))  # noqa: B023
        with pytest.raises(ValueError, match=message):
            load_quantized(tmp_path / "model")


def test_what_a_foreign_format_has_no_place_for_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="cannot be written for GPTQ: its zero points are fractions"):
        to_gptq(hqq_quantize(torch.randn(32, 64), uneven(4)))
    for way, what in (
        ("HQQ, 4 bits", "its zero points are fractions"),
        ("all kinds", "it is of the kind DividedInput, not a QLinear"),
    ):
        model = tiny_model("Llama")
        WAYS[way](model)
        with pytest.raises(ValueError, match=rf"cannot be written for compressed-tensors: {what}"):
            export_compressed_tensors(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_only_a_qlinear_is_shared_out_among_processes():
    linear, x = torch.nn.Linear(64, 24), torch.linspace(-1, 1, 128).reshape(2, 64)
    with pytest.raises(ValueError, match="up: tensor parallelism shares out the weight of a QLinear, not of NF4Linear"):
        share_layer(NF4Linear.from_linear(linear), "up", "colwise", 0, 2)
    whole, shares = QLinear.from_qtensor(hqq_quantize(linear.weight, uneven(3))), []
    for rank in range(2):
        shares.append(copy.deepcopy(whole))
        share_layer(shares[-1], "up", "rowwise", rank, 2)
    torch.testing.assert_close(shares[0](x[:, :32]) + shares[1](x[:, 32:]), whole(x))
