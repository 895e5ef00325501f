"""LLM.int8(): float where all columns are outliers, integers where none is, and their sum in between."""

import math

import pytest
import torch

from qlib import Scheme
from qlib.checkpoint import load_quantized, save_quantized
from qlib.linear import QLinear, integer_linear
from qlib.methods import llm_int8_model
from qlib.report import sqnr
from tests.tiny_models import outputs, tiny_model


def linear(inputs=40, outputs=8, bias=True):
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)))
    return layer


def inputs(tokens=12, columns=40, outliers=()):
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)).clamp(-5.5, 5.5)
    x[3, list(outliers)] = 60.0
    return x


def int8(layer, threshold=6.0, scheme=None, per_token=True):
    quantized = QLinear.from_linear(layer, scheme or Scheme())
    quantized.set_activations(8, None if threshold == math.inf else threshold, per_token)
    return quantized


def is_int8(module):
    return isinstance(module, QLinear) and module.activation_bits == 8


def test_where_all_columns_are_outliers_the_inputs_stay_floats():
    layer, x = linear(), inputs()
    found = int8(layer, threshold=0.0)(x)
    torch.testing.assert_close(
        found, torch.nn.functional.linear(x, QLinear.from_linear(layer, Scheme()).weight, layer.bias)
    )
    assert sqnr(layer(x), found) > 40


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_token", [True, False])
def test_where_none_is_it_is_w8a8_with_a_scale_a_token_and_a_scale_a_row(bits, axis, symmetric, per_token):
    layer, x = linear(), inputs()
    quantized = int8(layer, math.inf, Scheme(bits, symmetric, axis), per_token)
    qtensor = quantized.qtensor
    x_scale = (x.abs().amax(1, keepdim=True) if per_token else x.abs().amax()) / 127
    x_values = torch.round(x / x_scale).to(torch.int8)
    sums = integer_linear(x_values, 0, qtensor.values, qtensor.zero_point.flatten().to(torch.int32))
    expected = sums * x_scale * qtensor.scale.flatten() + layer.bias
    torch.testing.assert_close(quantized(x), expected)
    assert torch.equal(int8(layer, 6.0, Scheme(bits, symmetric, axis), per_token)(x), quantized(x))


def test_a_column_is_set_apart_where_a_single_token_reaches_the_threshold():
    layer, x = linear(bias=False), inputs(outliers=(7, 30))
    weight, apart = int8(layer).weight, torch.zeros(40, dtype=torch.bool)
    apart[[7, 30]] = True
    expected = int8(layer, math.inf)(x.masked_fill(apart, 0.0)) + x[:, apart] @ weight[:, apart].T
    torch.testing.assert_close(int8(layer)(x), expected)
    at_threshold = inputs()
    at_threshold[0, 5] = -6.0
    apart = torch.arange(40) == 5
    expected = int8(layer, math.inf)(at_threshold.masked_fill(apart, 0.0)) + at_threshold[:, apart] @ weight[:, apart].T
    torch.testing.assert_close(int8(layer)(at_threshold), expected)


def test_it_keeps_the_tokens_with_an_outlier_from_losing_the_rest():
    layer, x = linear(), inputs(outliers=(7,))
    assert sqnr(layer(x), int8(layer)(x)) > sqnr(layer(x), int8(layer, math.inf)(x)) + 1
    assert sqnr(layer(x), int8(layer)(x)) > sqnr(layer(x), int8(layer, math.inf, per_token=False)(x)) + 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (0, 40), (2, 5, 40)])
def test_shapes_and_dtypes_are_those_of_a_linear_layer(shape, dtype):
    layer = int8(linear()).to(dtype)
    for per_token in (True, False):
        layer.per_token = per_token
        found = layer(torch.ones(shape, dtype=dtype))
        assert found.shape == (*shape[:-1], 8) and found.dtype == dtype


def test_a_row_of_zeros_gives_the_bias():
    layer = linear()
    assert torch.equal(int8(layer)(torch.zeros(3, 40)), layer.bias.expand(3, 8))
    assert "W8A8" in repr(int8(layer)) and "outliers from 6.0" in repr(int8(layer))


def test_a_scale_that_changes_within_a_row_is_refused_and_the_model_stays():
    model = tiny_model("Llama")
    with pytest.raises(ValueError, match="an integer sum needs one scale for all the inputs of a row"):
        llm_int8_model(model, Scheme(8, axis=1))
    assert not any(isinstance(module, QLinear) for module in model.modules())


def test_a_model_is_saved_and_comes_back_in_int8(tmp_path):
    model = tiny_model("Llama")
    before = outputs(model)[0]
    report = llm_int8_model(model)
    assert sum(is_int8(module) for module in model.modules()) == len(report.quantized) == 14
    assert sqnr(before, outputs(model)[0]) > 25
    save_quantized(model, tmp_path / "model")
    loaded = load_quantized(tmp_path / "model")
    assert sum(is_int8(module) for module in loaded.modules()) == 14
    assert torch.equal(outputs(loaded)[0], outputs(model)[0])
