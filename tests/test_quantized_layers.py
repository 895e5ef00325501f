"""Layers of every kind and scheme, in models: what is saved comes back to the element, by qlib and by transformers."""

import copy
import json
import math

import pytest
import torch
import transformers

from qlib import (
    FP8,
    MXFP4,
    NF4,
    NVFP4,
    QLinear,
    Scheme,
    load_quantized,
    quantize_checkpoint,
    quantize_model,
    replace_linear,
    save_quantized,
)
from qlib.checkpoint import KINDS, QUANTIZED, entries_of
from qlib.export import export_compressed_tensors, to_gptq
from qlib.hf import share_layer
from qlib.linear import QEmbedding
from qlib.methods import (
    DividedInput,
    awq_model,
    gptq_model,
    hqq_model,
    hqq_quantize,
    llm_int8_model,
    smoothquant_model,
)
from qlib.model import tensors_of
from qlib.pretrained import OLD_PARTS
from qlib.report import file_bytes, state_dict_bytes
from tests.test_quantized_folders import edit_config, quiet, rewrite  # noqa: F401 - one is a fixture
from tests.tiny_models import MODELS, assert_same_outputs, outputs, tiny_model

# Some ways of quantizing here name layers of several architectures.
pytestmark = pytest.mark.filterwarnings("ignore:.* in ignore matches no layer")
IDS = torch.randint(3, 100, (4, 9), generator=torch.Generator().manual_seed(2))
UP = "model.layers.0.mlp.up_proj"
EVEN = Scheme(bits=4, group_size=32)
RAGGED_NF4 = Scheme(4, group_size=24, grid="nf4")


def uneven(bits, group_size=32):
    return Scheme(bits, symmetric=False, group_size=group_size)


def all_kinds(model):
    """A layer of one kind beside one of another: LLM.int8() after a rescale, NF4 of two sorts, HQQ, and rounding."""
    smoothquant_model(model, IDS, ignore=("lm_head", "*mlp*", "*.intermediate.*", "*.output.*"), divide=True)
    quantize_model(model, NF4, ignore=("lm_head", "*.down_proj", "*.up_proj", "*.1.*"))
    quantize_model(model, RAGGED_NF4, ignore=("lm_head", "*.up_proj", "*.1.*"))
    hqq_model(model, uneven(3), ignore=("lm_head", "*.1.*.up_proj", "*.1.*.gate_proj"))
    return quantize_model(model, EVEN, ignore=(), embeddings=True)


WAYS = {
    "NF4": lambda model: quantize_model(model, NF4),
    "NF4, float32 scales": lambda model: quantize_model(model, Scheme(4, group_size=64, grid="nf4")),
    "NF4, ragged groups": lambda model: quantize_model(model, RAGGED_NF4),
    "MXFP4": lambda model: quantize_model(model, MXFP4),
    "NVFP4": lambda model: quantize_model(model, NVFP4),
    "FP8, int8 activations": lambda model: quantize_model(model, FP8, activation_bits=8),
    "float16 scales": lambda model: quantize_model(model, Scheme(4, False, group_size=32, scales="float16")),
    "bfloat16 scales": lambda model: quantize_model(model, Scheme(3, group_size=32, scales="bfloat16")),
    "double scales, zero points": lambda model: quantize_model(model, Scheme(4, False, group_size=16, scales="double")),
    "embeddings too": lambda model: quantize_model(model, uneven(4), embeddings=True),
    "int8 activations": lambda model: quantize_model(model, uneven(4), activation_bits=8),
    "GPTQ, NVFP4": lambda model: gptq_model(model, NVFP4, IDS),
    "GPTQ, MXFP4": lambda model: gptq_model(model, MXFP4, IDS),
    "AWQ, NF4": lambda model: awq_model(model, NF4, IDS),
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


# Each way on a Llama; what another model does otherwise (biases, tied heads, Conv1D) the mixed ones meet.
MIXED = ["all kinds", "embeddings too", "NVFP4", "SmoothQuant, inputs divided"]


@pytest.mark.parametrize(
    ("way", "name"), [(way, "Llama") for way in WAYS] + [(way, name) for way in MIXED for name in ("BERT", "GPT-2")]
)
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


@pytest.mark.parametrize(
    "way",
    [way for way in WAYS if way.startswith(("NF4", "MX", "NV", "float16", "double", "HQQ, ")) and "then" not in way],
)
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
    assert {layer.get("kind", "qlinear") for layer in layers.values()} == set(KINDS) - {"parameter"}
    assert layers["model.layers.0.self_attn.q_proj"] == {
        **{"bits": 8, "symmetric": True, "axis": 0, "group_size": None, "activation_bits": 8},
    }
    assert layers["model.layers.0.self_attn.o_proj"] == {"kind": "divided_input"}
    nf4 = {"bits": 4, "symmetric": True, "axis": 0, "group_size": 64, "grid": "nf4"}
    assert layers["model.layers.0.mlp.gate_proj"] == nf4 | {"scales": "double"}
    assert layers["model.layers.0.mlp.down_proj"] == nf4 | {"group_size": 24}
    hqq = {"bits": 3, "symmetric": False, "axis": 0, "group_size": 32, "zero_dtype": "float16"}
    assert layers[UP] == hqq
    assert layers["model.layers.1.mlp.up_proj"] == {"bits": 4, "symmetric": True, "axis": 0, "group_size": 32}


def as_first_written(folder):
    """Turn a saved model into what qlib's first version wrote: kinds of its own, and other names for NF4's parts."""
    layers, new_names = None, {new: old for old, new in OLD_PARTS.items()}

    def turn_back(config):
        nonlocal layers
        layers = config["quantization_config"]["layers"]
        for name, entry in layers.items():
            if entry.get("grid") == "nf4":
                layers[name] = {"kind": "nf4", "block_size": entry["group_size"], "double": "scales" in entry}
            elif entry.pop("activation_bits", None):
                layers[name] = entry | {"kind": "llm_int8", "threshold": entry.pop("outlier_threshold", None)}
                layers[name].setdefault("per_token", True)

    def rename(tensors):
        for key in list(tensors):
            layer, _, part = key.rpartition(".")
            if layers.get(layer, {}).get("kind") == "nf4" and part in new_names:
                tensors[f"{layer}.{new_names[part]}"] = tensors.pop(key)

    edit_config(folder, turn_back)
    rewrite(folder, rename)


def test_checkpoints_of_the_first_version_still_load(tmp_path):
    model = tiny_model("Llama")
    smoothquant_model(model, IDS, ignore=("lm_head", "*mlp*"), divide=True)
    llm_int8_model(model, threshold=2.5, per_token=False, ignore=("lm_head", "*_proj"))
    quantize_model(model, NF4, ignore=("lm_head", "*.up_proj"))
    quantize_model(model, RAGGED_NF4, ignore=("lm_head", "*.0.*"))
    save_quantized(model, tmp_path / "model")
    as_first_written(tmp_path / "model")
    assert_same_outputs(model, load_quantized(tmp_path / "model"))
    by_transformers = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert_same_outputs(model, by_transformers)
    by_transformers.save_pretrained(tmp_path / "again")
    assert_same_outputs(model, load_quantized(tmp_path / "again"))


def test_int8_layers_come_back_with_their_settings(tmp_path):
    for threshold, per_token in ((2.5, True), (math.inf, False)):
        model = tiny_model("Llama")
        llm_int8_model(model, threshold=threshold, per_token=per_token)
        save_quantized(model, tmp_path / "model")
        layer = load_quantized(tmp_path / "model").get_submodule(UP)
        found = (layer.activation_bits, layer.outlier_threshold, layer.per_token)
        assert found == (8, None if threshold == math.inf else threshold, per_token)


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
    net[0] = net[2] = DividedInput(QLinear.from_linear(layer, NF4), torch.linspace(0.5, 2, 8))
    save_quantized(net, tmp_path / "net")
    loaded, x = load_quantized(tmp_path / "net", structure), torch.linspace(-1, 1, 16).reshape(2, 8)
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded(x), net(x))


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
@pytest.mark.parametrize("scheme", [NF4, RAGGED_NF4, NVFP4, MXFP4], ids=str)
def test_a_checkpoint_is_quantized_on_any_grid_one_tensor_at_a_time(scheme, name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    streamed = quantize_checkpoint(tmp_path / "float", tmp_path / "model", scheme)
    model = tiny_model(name)
    assert streamed.quantized == quantize_model(model, scheme).quantized
    assert_same_outputs(model, load_quantized(tmp_path / "model"))
    by_transformers = getattr(transformers, MODELS[name][0]).from_pretrained(tmp_path / "model").eval()
    assert_same_outputs(model, by_transformers)


def test_no_other_scheme_is_taken_for_a_checkpoint(tmp_path):
    with pytest.raises(TypeError, match=r"scheme must be a qlib\.Scheme, such as Scheme\(bits=8\), not 4"):
        quantize_checkpoint(tmp_path / "float", tmp_path / "model", 4)


# ---------------------------------------------------------------- moved, copied and filled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_is_for_the_rest_of_a_model_and_not_for_its_weights(dtype, tmp_path):
    model = tiny_model("BERT")
    all_kinds(model)
    weights = {name: m.weight for name, m in model.named_modules() if isinstance(m, QUANTIZED)}
    cast = copy.deepcopy(model).to(dtype)
    assert cast.bert.embeddings.LayerNorm.weight.dtype == dtype
    for name, weight in weights.items():
        assert torch.equal(cast.get_submodule(name).weight, weight.to(dtype))
    assert entries_of(cast) == entries_of(model)
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
        r"its kind is 'vector', which this qlib does not know; it knows qlinear, embedding, parameter, divided_input",
    ),
    "a kind that is no word": (set_entry(kind=["nf4"]), "unhashable"),
    "a setting of another kind": (set_entry(kind="divided_input", bits=4), "unexpected keyword argument 'bits'"),
    "an impossible group size": (set_entry(bits=4, grid="nf4", group_size=0), "group_size must be a whole number"),
    "an unknown grid": (set_entry(bits=4, grid="nf3"), "grid must be one of integer, nf4, e2m1, e4m3, not 'nf3'"),
    "an entry of the first version cut short": (set_entry(kind="nf4", block_size=64), "its entry lacks 'double'"),
    "an impossible zero point": (
        set_entry(bits=3, symmetric=False, group_size=32, zero_dtype="float8"),
        "zero_dtype must be one of int8, float16, bfloat16, float32, not 'float8'",
    ),
    "a threshold in words": (
        set_entry(activation_bits=8, outlier_threshold="six"),
        "outlier_threshold must be a number or None, per_token True or False, not 'six' and True",
    ),
    "columns that no integer sum can bear": (
        set_entry(activation_bits=8, axis=1),
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
    quantize_model(model, NF4)
    for change, message in (
        ({"scales": "float32"}, rf"{UP}\.scale is of shape \(96,\); the model needs \(96, 1\)|has no place"),
        ({"group_size": 32}, rf"{UP}\.scale is of shape \(96,\); the model needs \(192,\)"),
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
        ("all kinds", "it is of the kind QEmbedding, not a QLinear"),
    ):
        model = tiny_model("Llama")
        WAYS[way](model)
        with pytest.raises(ValueError, match=rf"cannot be written for compressed-tensors: {what}"):
            export_compressed_tensors(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_only_a_qlinear_is_shared_out_among_processes():
    linear, x = torch.nn.Linear(64, 24), torch.linspace(-1, 1, 128).reshape(2, 64)
    with pytest.raises(
        ValueError, match="up: tensor parallelism shares out the weight of a QLinear, not of QEmbedding"
    ):
        share_layer(QEmbedding.from_embedding(torch.nn.Embedding(9, 8), Scheme()), "up", "colwise", 0, 2)
    with pytest.raises(ValueError, match="up: the scales of NF4, per group of 64, double quantization belong together"):
        share_layer(QLinear.from_linear(linear, NF4), "up", "colwise", 0, 2)
    whole, shares = QLinear.from_qtensor(hqq_quantize(linear.weight, uneven(3))), []
    for rank in range(2):
        shares.append(copy.deepcopy(whole))
        share_layer(shares[-1], "up", "rowwise", rank, 2)
    torch.testing.assert_close(shares[0](x[:, :32]) + shares[1](x[:, 32:]), whole(x))
