"""QLinear: a linear layer on packed integers, equal to the dequantized layer whatever is done to it."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from qlib import FP8, MXFP4, NF4, NVFP4, Scheme, fake_quantize, quantize_model, quantize_tensor
from qlib.linear import QLinear, integer_linear
from qlib.model import is_linear
from tests.strategies import schemes


def linear(inputs=20, outputs=6, bias=True):
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, inputs * outputs).sin().reshape(outputs, inputs))
    return layer


@given(schemes(), st.booleans(), st.sampled_from([(3, 20), (20,), (2, 5, 20), (0, 20)]))
def test_it_computes_what_the_dequantized_weight_computes(scheme, bias, shape):
    layer, x = linear(bias=bias), torch.linspace(-2, 2, max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()]
    quantized = QLinear.from_linear(layer, scheme)
    weight = quantize_tensor(layer.weight, scheme).dequantize()
    x = x.reshape(shape)
    right = torch.nn.functional.linear(x, weight, layer.bias)
    assert torch.allclose(quantized(x), right, rtol=1e-5, atol=1e-5)


def test_it_keeps_what_the_packed_tensor_keeps_and_no_more():
    layer = QLinear.from_linear(linear(64, 32, bias=False), Scheme(bits=2, symmetric=False, group_size=16))
    kept = sum(buffer.untyped_storage().nbytes() for buffer in layer.buffers())
    assert kept == layer.qtensor.nbytes == 32 * (64 * 2 // 8 + 4 * (4 + 1))
    assert not any(parameter.numel() for parameter in layer.parameters())


def test_conv1d_is_quantized_the_right_way_round():
    layer = Conv1D(6, 20)
    with torch.no_grad():
        layer.weight.copy_(linear().weight.T)
        layer.bias.copy_(torch.arange(6.0))
    x = torch.linspace(-1, 1, 40).reshape(2, 20)
    quantized = QLinear.from_linear(layer, Scheme(bits=8))
    assert (quantized.in_features, quantized.out_features) == (20, 6)
    assert torch.allclose(quantized(x), layer(x), atol=0.05)
    assert torch.equal(quantized.qtensor.dequantize(), quantize_tensor(linear().weight, Scheme(bits=8)).dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_scales_in_float32(dtype):
    layer = linear()
    with torch.no_grad():
        layer.weight.mul_(1e-7)  # a scale that float16 would round to 0
    quantized = QLinear.from_linear(layer, Scheme(bits=8)).to(dtype)
    assert quantized.scale.dtype == torch.float32 and (quantized.scale > 0).all()
    assert quantized.bias.dtype == dtype
    out = quantized(torch.ones(1, 20, dtype=dtype))
    assert out.dtype == dtype and out.isfinite().all()


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(bits=3, symmetric=False, group_size=7)], ids=str)
def test_it_survives_deepcopy_and_a_state_dict(scheme):
    quantized, x = QLinear.from_linear(linear(), scheme), torch.ones(2, 20)
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))
    other = QLinear(20, 6, scheme)
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(x), quantized(x))


def test_an_empty_layer_on_meta_takes_no_memory_and_can_be_filled():
    scheme = Scheme(bits=4, symmetric=False, group_size=8)
    quantized, empty = QLinear.from_linear(linear(), scheme), QLinear(20, 6, scheme, device="meta")
    assert all(buffer.is_meta for buffer in empty.buffers())
    empty.load_state_dict(quantized.state_dict(), assign=True)
    assert torch.equal(empty(torch.ones(20)), quantized(torch.ones(20)))
    assert empty.half().scale.dtype == torch.float32
    assert QLinear(20, 6, scheme, device="meta").half().to_empty(device="cpu").scale.dtype == torch.float32


def test_it_says_its_width_and_what_a_weight_costs():
    assert "W4A16" in repr(QLinear.from_linear(linear(64, 8), Scheme(bits=4, group_size=32)))
    assert "5.000 bits per weight" in repr(QLinear.from_linear(linear(64, 8), Scheme(bits=4, group_size=32)))


def test_a_weight_that_cannot_be_quantized_is_named():
    layer = linear()
    with torch.no_grad():
        layer.weight[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"mlp\.up\.weight cannot be quantized: the value at \[2, 3\] is nan"):
        QLinear.from_linear(layer, Scheme(), "mlp.up")
    with pytest.raises(TypeError, match=r"conv is a Conv2d; only nn\.Linear"):
        QLinear.from_linear(torch.nn.Conv2d(1, 1, 1), Scheme(), "conv")


# ---------------------------------------------------------------- as an nn.Linear, and the weight that it shows


def quantized_linear(**options):
    return QLinear.from_linear(linear(64, 32), Scheme(4, symmetric=False, group_size=32), **options)


WRITES = {
    "zero_ of data": lambda layer: layer.weight.data.zero_(),
    "copy_ of a transposed view": lambda layer: layer.weight.T.copy_(torch.zeros(64, 32)),
    "an element": lambda layer: layer.weight.__setitem__((0, 0), 1.0),
    "an operator": lambda layer: layer.weight.detach().view(-1).__iadd__(1.0),
    "data": lambda layer: setattr(layer.weight, "data", torch.zeros(32, 64)),
    "the result of another function": lambda layer: torch.add(torch.zeros(32, 64), 1, out=layer.weight),
    "a function in place": lambda layer: torch.nn.functional.relu(layer.weight, inplace=True),
    "many at once": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "an initializer": lambda layer: torch.nn.init.xavier_uniform_(layer.weight),
    "another initializer": lambda layer: torch.nn.init.orthogonal_(layer.weight),
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "a parameter": lambda layer: setattr(layer, "weight", torch.nn.Parameter(torch.zeros(32, 64))),
    "a tensor": lambda layer: setattr(layer, "weight", torch.zeros(32, 64)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_to_the_weight_is_refused_in_words_and_changes_nothing(write):
    layer = quantized_linear()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="what is written to it would be lost"):
        write(layer)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.numpy()[0] = 1


def test_whoever_reads_the_weight_computes_with_it_as_with_any_tensor():
    layer, x = quantized_linear(), torch.linspace(-1, 1, 128).reshape(2, 64).requires_grad_()
    weight = layer.qtensor.dequantize()
    out = torch.nn.functional.linear(x, layer.weight)
    assert type(out) is torch.Tensor and torch.equal(out, torch.nn.functional.linear(x, weight))
    out.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 64))
    for made in (
        layer.weight + 0,
        layer.weight.clone(),
        copy.deepcopy(layer.weight),
        torch.zeros(32, 64) + layer.weight,
    ):
        assert type(made) is torch.Tensor and torch.equal(made, weight)
    assert torch.equal(pickle.loads(pickle.dumps(layer.weight)), weight)
    read = torch.compile(lambda x: x @ layer.weight.T, backend="eager")
    assert torch.equal(read(x), x @ weight.T)
    assert repr(layer.weight) == repr(weight)


def test_a_parameter_made_of_the_weight_can_be_trained_and_saved():
    layer, plain = quantized_linear(), torch.nn.Linear(64, 32)
    plain.weight = torch.nn.Parameter(layer.weight)
    with torch.no_grad():
        plain.weight += 1
    assert torch.equal(plain.weight, layer.weight + 1)
    torch.save(plain.state_dict(), file := io.BytesIO())
    assert torch.equal(torch.load(io.BytesIO(file.getvalue()))["weight"], layer.weight + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_read_in_the_dtype_of_the_float_one(dtype, bias):
    layer = QLinear.from_linear(linear(bias=bias).to(dtype), Scheme(8))
    assert layer.weight.dtype == next(layer.parameters()).dtype == dtype
    for cast in (layer.type(torch.float16), layer.to(torch.bfloat16), layer.float()):
        assert cast.weight.dtype == cast.example.dtype and cast.packed.dtype == torch.uint8


def test_a_state_dict_of_the_first_version_which_has_no_example_loads():
    layer, empty = quantized_linear(), QLinear(64, 32, Scheme(4, symmetric=False, group_size=32))
    state = layer.state_dict()
    del state["example"]
    empty.load_state_dict(state)
    assert torch.equal(empty.weight, layer.weight)


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_under_autocast_it_returns_what_a_float_layer_returns(x_dtype, dtype, activation_bits):
    layer = quantized_linear(activation_bits=activation_bits)
    plain = torch.nn.Linear(64, 32)
    plain.weight, plain.bias = torch.nn.Parameter(layer.weight), torch.nn.Parameter(layer.bias)
    for rows, grad in ((2, False), (2, True), (40, False)):
        x = torch.linspace(-1, 1, 64 * rows).mul(9).sin().reshape(rows, 64).to(x_dtype).requires_grad_(grad)
        with torch.autocast("cpu", dtype), torch.set_grad_enabled(grad):
            ours, theirs = layer(x), plain(x)
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)


def test_the_input_can_be_given_by_name_as_that_of_a_float_layer():
    layer, x = quantized_linear(), torch.ones(1, 64)
    assert torch.equal(layer(input=x), layer(x))


def test_rows_that_are_not_finite_spoil_no_others_with_int8_activations_either():
    x = torch.linspace(-1, 1, 64 * 3).reshape(3, 64)
    x[1, 5] = torch.inf
    for per_token, threshold in ((True, None), (False, None), (True, 0.9)):
        layer = quantized_linear(activation_bits=8)
        layer.set_activations(8, threshold, per_token)
        out = layer(x)
        assert torch.equal(out[::2], layer(x[::2]))
        torch.testing.assert_close(out[1], x[1] @ layer.weight.T + layer.bias, equal_nan=True)


# ---------------------------------------------------------------- what does more than a linear layer


class Renamed(torch.nn.Linear):
    def forward(self, hidden_states):
        product = hidden_states @ self.weight.T
        return product if self.bias is None else product + self.bias


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 0.1 * super().forward(x)


class Clamped(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-100, 100))


class DropsInTraining(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)


class GivesTwo(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class TakesTwo(torch.nn.Linear):
    def forward(self, x, mask=None):
        return super().forward(x)


class Counts(torch.nn.Linear):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class HoldsMore(torch.nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("weight_scale", torch.ones(()))


def with_a_forward_put_on(layer):
    layer.forward = lambda x: x
    return layer


LEFT = {
    "Scaled with a forward of its own": Scaled,
    "Clamped with a forward of its own": Clamped,
    "DropsInTraining with a forward of its own": DropsInTraining,
    "GivesTwo with a forward of its own": GivesTwo,
    "TakesTwo with a forward of its own": TakesTwo,
    "Counts with a forward of its own": Counts,
    "HoldsMore that holds more than a weight and a bias: weight_scale": HoldsMore,
    "Linear whose forward was replaced": lambda *sizes: with_a_forward_put_on(torch.nn.Linear(*sizes)),
    "Linear whose weight is float8_e4m3fn already": lambda *sizes: torch.nn.Linear(*sizes).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize(("words", "make"), LEFT.items(), ids=LEFT.keys())
def test_a_layer_that_does_more_is_left_with_a_word(words, make):
    model = torch.nn.Sequential(make(16, 8), Renamed(16, 8), Renamed(16, 8, False))
    random_state = torch.random.get_rng_state()
    report = quantize_model(model, Scheme(8))
    assert [layer.name for layer in report.quantized] == ["1", "2"]
    assert [(left.name, left.why) for left in report.skipped] == [("0", f"a {words}")]
    assert torch.equal(torch.random.get_rng_state(), random_state)
    with pytest.raises(TypeError, match=f"up is a {words}"):
        QLinear.from_linear(model[0], Scheme(8), "up")


def test_the_subclasses_of_transformers_are_told_apart_on_the_meta_device_too():
    from transformers import Llama4TextConfig
    from transformers.integrations.finegrained_fp8 import FP8Linear
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    config = Llama4TextConfig(hidden_size=32, num_local_experts=4, num_experts_per_tok=1)
    for device in ("cpu", "meta"):
        with torch.device(device):
            layers = [FalconLinear(32, 8), FalconLinear(32, 8, bias=False), Llama4Router(config), FP8Linear(32, 8)]
        assert [is_linear(layer) for layer in layers] == [True, True, False, False]


@pytest.mark.parametrize(
    ("tie", "name", "words"),
    [
        (torch.nn.utils.spectral_norm, "0", "its weight is made of others"),
        (torch.nn.utils.parametrizations.spectral_norm, "0.parametrizations.weight", "ParametrizationList"),
    ],
)
def test_a_weight_that_is_made_of_others_is_left_with_a_word(tie, name, words):
    report = quantize_model(torch.nn.Sequential(tie(torch.nn.Linear(8, 8))), Scheme(8))
    assert not report.quantized and [left.name for left in report.skipped] == [name]
    assert words in report.skipped[0].why


def test_hooks_go_on_and_can_still_be_removed():
    model, seen = torch.nn.Sequential(torch.nn.Linear(8, 8)), []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[0].register_forward_hook(lambda *_, **__: seen.append("after"), with_kwargs=True),
        model[0].register_full_backward_hook(lambda *_: seen.append("back")),
    ]
    quantize_model(model, Scheme(8))
    x = torch.ones(2, 8, requires_grad=True)
    model(x).sum().backward()
    assert seen == ["before", "after", "back"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(seen) == 3


# ---------------------------------------------------------------- int8 activations


def by_group(x, qtensor):
    """x @ weight.T as lesson 9 does it, group by group: int8 values, an int32 sum, and both scales afterwards."""
    rows, columns = qtensor.shape
    size = qtensor.scheme.group_size or columns
    scale, zero_point = (part.broadcast_to(rows, -(-columns // size)) for part in (qtensor.scale, qtensor.zero_point))
    out = torch.zeros(len(x), rows)
    for group, first in enumerate(range(0, columns, size)):
        part, weight = x[:, first : first + size], qtensor.values[:, first : first + size]
        x_scale = part.abs().amax(1, keepdim=True) / 127
        x_scale[x_scale == 0] = 1
        sums = integer_linear(torch.round(part / x_scale).to(torch.int8), 0, weight, zero_point[:, group].int())
        out += sums * x_scale * scale[:, group]
    return out


@given(schemes(axis=0), st.integers(1, 5))
def test_int8_activations_are_the_integer_arithmetic_with_a_scale_a_token_and_group(scheme, tokens):
    layer, x = linear(), torch.linspace(-2, 2, 20 * tokens).mul(7).sin().reshape(tokens, 20)
    quantized = QLinear.from_linear(layer, scheme, activation_bits=8)
    torch.testing.assert_close(quantized(x), by_group(x, quantized.qtensor) + layer.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", [NF4, MXFP4, NVFP4, FP8], ids=str)
def test_int8_activations_meet_the_levels_of_any_grid(scheme):
    layer, x = linear(96), torch.linspace(-2, 2, 96 * 3).mul(7).sin().reshape(3, 96)
    quantized = QLinear.from_linear(layer, scheme, activation_bits=8)
    rounded = fake_quantize(x, Scheme(8, group_size=scheme.group_size))
    right = torch.nn.functional.linear(rounded, quantized.weight, layer.bias)
    torch.testing.assert_close(quantized(x), right, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(quantized(x), torch.nn.functional.linear(x, quantized.weight, layer.bias), atol=1e-5)


def test_activations_that_no_integer_sum_can_bear_are_refused():
    for scheme, bits, words in (
        (Scheme(8, axis=1), 8, "one scale for all the inputs of a row"),
        (Scheme(8), 4, "must be 8"),
    ):
        with pytest.raises(ValueError, match=words):
            QLinear.from_linear(linear(), scheme, activation_bits=bits)


def test_a_model_takes_int8_activations_as_a_whole():
    model = torch.nn.Sequential(linear(20, 20), torch.nn.ReLU(), linear())
    quantize_model(model, Scheme(4, group_size=8), activation_bits=8)
    assert [model[i].activation_bits for i in (0, 2)] == [8, 8] and "W4A8" in repr(model)
