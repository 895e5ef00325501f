"""QLinear: a linear layer on packed integers, equal to the dequantized layer whatever is done to it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from qlib import FP8, MXFP4, NF4, NVFP4, Scheme, fake_quantize, quantize_model, quantize_tensor
from qlib.linear import QLinear, integer_linear
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
