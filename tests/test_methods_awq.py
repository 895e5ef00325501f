"""AWQ: never worse than rounding on its objective, best on its own grid where columns are independent, and a model."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib import Scheme, quantize_tensor
from qlib.affine import choose_qparams, dequantize, quant_range
from qlib.checkpoint import load_quantized, save_quantized
from qlib.linear import QLinear
from qlib.methods import awq_model, awq_rescale, awq_scale, gptq_model, hessian, output_errors
from qlib.methods.awq import power_scale
from qlib.tensor import fake_quantize
from tests.strategies import schemes
from tests.tiny_models import VOCABULARY, assert_same_outputs, outputs, tiny_model

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
SCHEME = Scheme(3, False, group_size=24)


def random_inputs(tokens, columns, seed=0, outlier=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator)
    if outlier is not None:
        x[:, outlier] *= 20
    return x


def random_weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 1))


def error_of(weight, scale, x, scheme):
    """The sum of the squared errors of the outputs, the layer's input divided and its weight multiplied by `scale`."""
    back = quantize_tensor(weight.float() * scale, scheme).dequantize().double()
    expected = x.double() @ weight.double().T
    return ((x.double() / scale.double()) @ back.T - expected).square().sum().item()


@settings(max_examples=40)
@given(
    schemes(),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([1, 2, 40]),
    st.integers(0, 10_000),
    st.sampled_from([torch.float32, torch.float16]),
)
def test_it_is_never_worse_than_rounding(scheme, rows, columns, tokens, seed, dtype):
    x, weights = random_inputs(tokens, columns, seed), [random_weight(rows, columns, seed), torch.zeros(2, columns)]
    x[:, ::3] = 0  # channels that are never active
    x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    scale = awq_scale(weights, x, scheme)
    assert scale.shape == (columns,) and scale.dtype == torch.float32
    assert scale.isfinite().all() and (scale > 0).all() and (scale[::3] == 1).all()
    rounded = sum(error_of(weight, torch.ones(columns), x, scheme) for weight in weights)
    assert sum(error_of(weight, scale, x, scheme) for weight in weights) <= rounded * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_gains_where_one_channel_is_large(bits):
    x, weight, scheme = random_inputs(100, 64, outlier=5), random_weight(16, 64), Scheme(bits, False, group_size=32)
    scale = awq_scale([weight], x, scheme)
    assert scale.argmax() == 5
    assert error_of(weight, scale, x, scheme) < 0.7 * error_of(weight, torch.ones(64), x, scheme)


def test_a_power_worked_by_hand():
    x = torch.tensor([[1.0, -4, 0, 16], [-1, 4, 0, 16]])
    # The powers 1/2 of 1, 4 and 16 are 1, 2 and 4; divided by sqrt(4 * 1) they are centred on 1.
    assert power_scale(x, 0.5).tolist() == [0.5, 1.0, 1.0, 2.0]
    assert power_scale(x, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert power_scale(torch.zeros(2, 3), 0.5).tolist() == [1.0, 1.0, 1.0]


def best_on_grid(weight, scale, x, scheme):
    """The smallest error of each row over all integers, on the grid of the scaled weight."""
    grid_scale, zero_point = choose_qparams(weight * scale, scheme)
    low, high = quant_range(scheme.bits)
    codes = torch.tensor(list(itertools.product(range(low, high + 1), repeat=weight.shape[1])), dtype=torch.int8)
    rows = [dequantize(codes, grid_scale[row], zero_point[row]) / scale for row in range(len(weight))]
    return torch.stack([output_errors(weight[row], rows[row], hessian(x)).min() for row in range(len(weight))])


def found_on_grid(weight, scale, x, scheme):
    return output_errors(weight, fake_quantize(weight * scale, scheme) / scale, hessian(x))


def test_on_tiny_matrices_it_is_near_the_best_of_its_grid_and_at_it_where_columns_are_independent():
    scheme, found, best = Scheme(2, False), [], []
    for seed in range(30):
        weight, x = random_weight(2, 4, seed), random_inputs(50, 4, seed, outlier=seed % 4)
        scale = awq_scale([weight], x, scheme)
        found.append(found_on_grid(weight, scale, x, scheme))
        best.append(best_on_grid(weight, scale, x, scheme))
        alone = torch.tensor([1.0, 5, 2, 0.5]).diag()
        scale = awq_scale([weight], alone, scheme)
        torch.testing.assert_close(
            found_on_grid(weight, scale, alone, scheme), best_on_grid(weight, scale, alone, scheme)
        )
    found, best = torch.cat(found), torch.cat(best)
    assert (found >= best - 1e-12).all()
    assert found.mean() < 1.5 * best.mean()


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "BERT"])
def test_a_model_is_saved_loaded_and_runs_like_the_rest(name, tmp_path):
    model = tiny_model(name)
    before = outputs(model)[0]
    awq_rescale(model, SCHEME, IDS)
    torch.testing.assert_close(outputs(model)[0], before, rtol=1e-3, atol=1e-5)
    model = tiny_model(name)
    report = awq_model(model, SCHEME, IDS)
    assert {layer.scheme for layer in report.quantized} == {SCHEME}
    save_quantized(model, tmp_path / "model")
    assert_same_outputs(load_quantized(tmp_path / "model"), model)


def test_gptq_may_follow():
    model = tiny_model("Llama")
    awq_rescale(model, SCHEME, IDS)
    gptq_model(model, SCHEME, IDS)
    assert sum(isinstance(module, QLinear) for module in model.modules()) == 14
    assert outputs(model)[0].isfinite().all()
