"""QLinear: a linear layer on packed integers, equal to the dequantized layer whatever is done to it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from qlib import Scheme, quantize_tensor
from qlib.linear import QLinear
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
    assert not list(layer.parameters())


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
