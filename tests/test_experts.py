"""The experts of a mixture, and any other large weight: packed, computed from, saved, loaded, told in the report."""

import copy

import pytest
import torch
import transformers

from qlib import INT4, NF4, NVFP4, Scheme, load_quantized, quantize_checkpoint, quantize_model, save_quantized
from qlib.experts import PackedParameter, as_matrix, experts_forward, packed_parameter, parameter_name
from qlib.hf import QlibConfig
from qlib.model import tensors_of
from qlib.report import file_bytes, state_dict_bytes
from qlib.tensor import quantize_tensor
from tests.families import tiny_family
from tests.test_quantized_folders import edit_config, quiet  # noqa: F401 - one is a fixture
from tests.tiny_models import MODELS, randomize

SCHEME = Scheme(bits=4, symmetric=False, group_size=32)
MIXTURES = ["Mixtral", "Qwen3-MoE", "gpt-oss", "DeepSeek-V3", "OLMoE"]


def logits(model, inputs):
    with torch.inference_mode():
        return model(**inputs).logits


def packed_in(model):
    """{name of a parameter: the PackedParameter in its place}."""
    modules = model.named_modules()
    return {parameter_name(name): module for name, module in modules if isinstance(module, PackedParameter)}


def experts_of(model):
    return [module for module in model.modules() if hasattr(module, "is_transposed")]


# ---------------------------------------------------------------- small


@pytest.mark.parametrize("name", MIXTURES)
def test_the_experts_of_a_mixture_take_a_fraction_of_their_bytes_in_memory_and_on_disk(name, tmp_path):
    model, _ = tiny_family(name)
    experts = sum(p.nbytes for module in experts_of(model) for p in module.parameters() if p.ndim == 3)
    report = quantize_model(model, SCHEME)
    assert experts > 0.2 * report.bytes_before
    lines = [layer for layer in report.quantized if ".experts." in layer.name]
    assert sum(layer.bytes_before for layer in lines) == experts
    assert sum(layer.bytes_after for layer in lines) == experts * 5.25 / 32  # four bits, a float32 and a byte for 32
    assert report.bytes_after == state_dict_bytes(tensors_of(model))
    save_quantized(model, tmp_path / "model")
    assert report.bytes_after <= file_bytes(tmp_path / "model" / "model.safetensors") < report.bytes_after + 30000


@pytest.mark.parametrize(
    "scheme", [SCHEME, Scheme(2, axis=None), Scheme(8, axis=1), Scheme(3, group_size=24), NF4, NVFP4]
)
def test_what_is_packed_is_what_quantize_tensor_makes_of_the_matrix(scheme):
    for name in ("Mixtral", "gpt-oss"):
        model, _ = tiny_family(name)
        weights = dict(model.named_parameters())
        quantize_model(model, scheme)
        for parameter, packed in packed_in(model).items():
            matrix = as_matrix(weights[parameter], packed.weight_shape[0], packed.transposed)
            assert torch.equal(packed.weight, quantize_tensor(matrix, scheme).dequantize())
            back = as_matrix(packed(), packed.weight_shape[0], packed.transposed)
            assert packed().shape == weights[parameter].shape and torch.equal(back, packed.weight)


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize(
    "scheme", [SCHEME, Scheme(8, axis=1), Scheme(8, axis=None), Scheme(3, group_size=20), NF4, NVFP4], ids=str
)
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_compute_the_same_in_every_way_that_transformers_has(name, scheme):
    model, inputs = tiny_family(name)
    quantize_model(model, scheme)
    assert model.config._experts_implementation == "qlib"
    ours = logits(model, inputs)
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(implementation)
        torch.testing.assert_close(logits(model, inputs), ours, rtol=1e-4, atol=1e-5)


def test_float_experts_compute_the_same_by_experts_forward():
    for name in MIXTURES:
        model, inputs = tiny_family(name)
        expected = logits(model, inputs)
        for implementation in ("eager", "qlib"):
            model.set_experts_implementation(implementation)
            torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_only_the_experts_that_a_batch_needs_are_made_real(monkeypatch):
    model, _ = tiny_family("Mixtral")
    quantize_model(model, NF4)  # which no kernel reads
    experts = experts_of(model)[0]
    read, plain = [], experts_forward.__globals__["plain_linear"]
    monkeypatch.setitem(
        experts_forward.__globals__, "plain_linear", lambda x, w, b: read.append(w.shape) or plain(x, w, b)
    )
    x, weights = torch.ones(3, 64), torch.ones(3, 1)
    with torch.inference_mode():
        experts(x, torch.tensor([[2], [2], [0]]), weights)
    assert len(read) == 4 and all(len(shape) == 2 for shape in read)  # two weights of two of four experts


def test_tokens_for_the_experts_of_another_process_are_passed_over():
    model, _ = tiny_family("Mixtral")
    quantize_model(model, SCHEME)
    experts = experts_of(model)[0]
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    index, weights = torch.tensor([[1, 4], [4, 4]]), torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    with torch.inference_mode():
        out = experts(x, index, weights)
        torch.testing.assert_close(out[:1], experts(x[:1], index[:1, :1], weights[:1, :1]))
    assert not out[1].any()


def test_gradients_reach_what_comes_before_the_experts():
    model, inputs = tiny_family("Mixtral")
    quantize_model(model, SCHEME)
    slopes = []
    for implementation in ("qlib", "eager"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        model(**inputs).logits.square().sum().backward()
        slopes.append(model.model.embed_tokens.weight.grad.clone())
    assert slopes[0].any()
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3 * slopes[0].abs().max().item())


def test_half_precision_experts_stay_half():
    model, inputs = tiny_family("gpt-oss")
    model = model.bfloat16()
    quantize_model(model, SCHEME)
    assert logits(model, inputs).dtype == torch.bfloat16
    assert all(packed().dtype == torch.bfloat16 for packed in packed_in(model).values())
    assert all(packed.scale.dtype == torch.float32 for packed in packed_in(model).values())


def test_a_write_to_a_packed_weight_is_refused_and_changes_nothing():
    model, inputs = tiny_family("Mixtral")
    quantize_model(model, SCHEME)
    before, experts = logits(model, inputs), experts_of(model)[0]
    with pytest.raises(ValueError, match="what is written to it would be lost"):
        experts.down_proj = torch.zeros(experts.down_proj.shape)
    with pytest.raises(ValueError, match="what is written to it would be lost"):
        experts.down_proj.data.zero_()
    assert torch.equal(logits(model, inputs), before)


def test_a_copy_and_a_state_dict_keep_everything():
    model, inputs = tiny_family("gpt-oss")
    quantize_model(model, SCHEME)
    again, expected = copy.deepcopy(model), logits(model, inputs)
    assert torch.equal(logits(again, inputs), expected)
    for tensor in again.state_dict().values():
        tensor.zero_()
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, inputs), expected)


# ---------------------------------------------------------------- what is left


def test_ignored_experts_stay_float_by_the_name_of_the_module_or_of_the_weight():
    for ignore, left in (
        ("experts", 4),
        ("*.experts", 4),
        ("*down_proj", 2),
        ("model.layers.0.mlp.experts.down_proj", 1),
    ):
        model, _ = tiny_family("Mixtral")
        report = quantize_model(model, SCHEME, ignore=(ignore, "lm_head"))
        assert len(packed_in(model)) == 4 - left
        nbytes = {layer.name: layer.nbytes for layer in report.skipped}
        experts = experts_of(model)[0]
        floats = sum(p.nbytes for p in experts.parameters(recurse=False))
        assert nbytes["model.layers.0.mlp.experts"] == floats > 0


def test_every_report_names_what_stays_float(tmp_path):
    model, _ = tiny_family("Mixtral")
    model.save_pretrained(tmp_path / "float")
    ignore = ("experts", "lm_head")
    told = [quantize_model(model, SCHEME, ignore).skipped]
    told.append(quantize_checkpoint(tmp_path / "float", tmp_path / "streamed", SCHEME, ignore).skipped)
    config = QlibConfig(bits=4, symmetric=False, group_size=32, ignore=ignore)
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config)
    told.append(loaded.hf_quantizer.report.skipped)
    assert told[0] == told[1] == told[2]
    assert {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts", "lm_head"} < {layer.name for layer in told[0]}


def test_a_method_for_linear_layers_says_that_it_leaves_experts():
    from qlib.methods import hqq_model

    model, _ = tiny_family("Mixtral")
    report = hqq_model(model, INT4)
    why = {layer.name: layer.why for layer in report.skipped}
    assert "experts" in why["model.layers.0.mlp.experts"]
    assert len(quantize_model(model, INT4).quantized) == 4  # and rounding takes what it left


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("scheme", [Scheme(2, group_size=16), NF4, NVFP4], ids=str)
@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_packed_experts_of_every_scheme_come_back(name, scheme, tmp_path):
    model, inputs = tiny_family(name)
    model.save_pretrained(tmp_path / "float", max_shard_size="100KB")
    expected = type(model).from_pretrained(tmp_path / "float").eval()
    report = quantize_model(expected, scheme)
    save_quantized(expected, tmp_path / "saved", max_shard_size="50KB")
    streamed = quantize_checkpoint(tmp_path / "float", tmp_path / "streamed", scheme)
    assert streamed.quantized == report.quantized
    assert streamed.bytes_after <= report.bytes_after  # which counts buffers that no file holds
    for folder in ("saved", "streamed"):
        for load in (load_quantized, type(model).from_pretrained):
            assert torch.equal(logits(load(tmp_path / folder).eval(), inputs), logits(expected, inputs))


def test_more_than_ten_experts_are_put_together_in_the_order_of_their_numbers(tmp_path):
    name, config = MODELS["Mixtral"]
    config = copy.deepcopy(config)
    config.num_local_experts = 11  # of which the last comes before the third in the order of letters
    model = randomize(getattr(transformers, name)(config).eval(), 0)
    model.save_pretrained(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "streamed", SCHEME)
    quantize_model(model, SCHEME)
    inputs = {"input_ids": torch.arange(3, 39).reshape(2, 18)}
    assert torch.equal(logits(load_quantized(tmp_path / "streamed"), inputs), logits(model, inputs))


# ---------------------------------------------------------------- any other large weight


class Odd(torch.nn.Module):
    """A convolution, attention of PyTorch's own, weights that no layer holds, and a layer that is recurrent."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv1d(32, 64, 3)
        self.attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)
        self.inner = torch.nn.ParameterList([torch.randn(64, 4, 16)])
        self.memory = torch.nn.LSTM(64, 64, batch_first=True)

    def forward(self, x):
        x = self.convolution(x).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + torch.einsum("bsd,dhk->bshk", x, self.inner[0]).flatten(2)
        return self.memory(x)[0]


def test_other_large_weights_are_packed_only_if_asked_for(tmp_path):
    torch.manual_seed(0)
    net, x = Odd().eval(), torch.randn(2, 32, 9)
    plain, oracle, structure = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)
    assert not quantize_model(plain, SCHEME).quantized
    report = quantize_model(net, SCHEME, other_weights=True)
    names = ["convolution.weight", "attention.in_proj_weight", "attention.out_proj.weight", "inner.0"]
    assert [layer.name for layer in report.quantized] == names
    assert [layer.name for layer in report.skipped] == ["memory"]
    assert report.bytes_after == state_dict_bytes(tensors_of(net))
    with torch.no_grad():
        for name, packed in packed_in(net).items():
            oracle.get_parameter(name).copy_(packed())
    with torch.inference_mode():
        torch.testing.assert_close(net(x), oracle(x))
        save_quantized(net, tmp_path / "net")
        torch.testing.assert_close(load_quantized(tmp_path / "net", structure)(x), net(x), rtol=0, atol=0)


def test_a_convolutions_groups_run_along_what_makes_one_output():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 3))
    weight = net[0].weight.detach().clone()
    quantize_model(net, Scheme(8), other_weights=True)
    scale = packed_in(net)["0.weight"].scale
    torch.testing.assert_close(scale, weight.flatten(1).abs().amax(1, keepdim=True) / 127)


@pytest.mark.parametrize("name", ["XLNet", "ConvNeXt"])
def test_families_whose_weights_are_not_linear_layers_are_packed_as_a_last_resort(name, tmp_path):
    model, inputs = tiny_family(name)
    model.save_pretrained(tmp_path / "float")
    before = quantize_model(copy.deepcopy(model), SCHEME).bytes_after
    after = quantize_model(model, SCHEME, other_weights=True).bytes_after
    assert after < 0.8 * before
    config = QlibConfig(bits=4, symmetric=False, group_size=32, other_weights=True)
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config).eval()
    streamed = quantize_checkpoint(tmp_path / "float", tmp_path / "streamed", SCHEME, other_weights=True)
    save_quantized(model, tmp_path / "saved")
    assert sorted(streamed.quantized, key=str) == sorted(loaded.hf_quantizer.report.quantized, key=str)
    with torch.inference_mode():
        expected = model(**inputs)[0]
        torch.testing.assert_close(loaded(**inputs)[0], expected, rtol=0, atol=0)
        for load in (load_quantized, type(model).from_pretrained):
            for folder in ("saved", "streamed"):
                torch.testing.assert_close(load(tmp_path / folder).eval()(**inputs)[0], expected, rtol=0, atol=0)


def test_a_packed_weights_entry_that_does_not_fit_is_named(tmp_path):
    model, _ = tiny_family("Mixtral")
    quantize_model(model, SCHEME)
    name = "model.layers.0.mlp.experts.down_proj"
    assert packed_parameter(model.get_submodule("model.layers.0.mlp.experts"), "down_proj").weight_shape[0] == 4 * 64
    for change, message in (
        ({"rows": 100}, rf"{name} make no matrix of 100 rows"),
        ({"rows": "many"}, "rows must be a whole number above 0, not 'many'"),
    ):
        save_quantized(model, tmp_path / "model")
        edit_config(tmp_path / "model", lambda c: c["quantization_config"]["layers"][name].update(change))  # noqa: B023
        for load in (load_quantized, type(model).from_pretrained):
            with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
                load(tmp_path / "model")
