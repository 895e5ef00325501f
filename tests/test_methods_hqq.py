"""HQQ: the iteration is the published one, no block is worse than rounding, and whole zero points gain nothing."""

import pytest
import torch
from hypothesis import given, settings

from qlib import QLinear, QTensor, Scheme, choose_qparams, load_tensors, quant_range, quantize_tensor, save_tensors
from qlib.methods import half_quadratic_zero_points, hqq_model, hqq_quantize
from tests.strategies import blocks, schemes, tensors

GROUPS = Scheme(bits=3, symmetric=False, group_size=64)
ZERO_DTYPES = pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32])


def normal(rows, columns, reach=1.0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * reach


def published(block, scale, zero_point, bits, steps, kappa):
    """The iteration as the paper writes it, for one block in float64: its zero points after each step."""
    qmin, qmax = quant_range(bits)
    beta, found = 10.0, []
    for _ in range(steps):
        q = torch.round(block / scale + zero_point).clamp(qmin, qmax)
        error = block - scale * (q - zero_point)
        large = torch.zeros_like(error)
        for i, e in enumerate(error.tolist()):
            if e != 0:
                large[i] = (1 if e > 0 else -1) * max(abs(e) - abs(e) ** (0.7 - 1) / beta, 0)
        zero_point = (q - (block - large) / scale).mean()
        found.append(zero_point.item())
        beta *= kappa
    return found


@pytest.mark.parametrize("reach", [1.0, 0.05])
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("kappa", [1.0, 1.01])
def test_the_zero_points_are_those_of_the_published_iteration(bits, reach, kappa):
    weight, scheme = normal(4, 128, reach), Scheme(bits, symmetric=False, group_size=64)
    scale, zero_point = choose_qparams(weight, scheme)
    ours = torch.stack(list(half_quadratic_zero_points(weight, scale, zero_point, scheme, kappa=kappa, steps=6)), -1)
    for row in range(4):
        for group in range(2):
            block = weight[row, 64 * group : 64 * group + 64].double()
            start = zero_point[row, group].double()
            theirs = published(block, scale[row, group].double(), start, bits, 6, kappa)
            torch.testing.assert_close(ours[row, group].double(), torch.tensor(theirs).double(), rtol=0, atol=1e-4)


@ZERO_DTYPES
@settings(max_examples=40)
@given(weight=tensors(min_dims=2, max_dims=2), scheme=schemes(symmetric=False))
def test_no_block_is_ever_worse_than_rounding(dtype, weight, scheme):
    rounded, moved = quantize_tensor(weight, scheme), hqq_quantize(weight, scheme, dtype)
    assert moved.shape == weight.shape and moved.zero_point.dtype == dtype
    assert torch.equal(moved.scale, rounded.scale)
    assert moved.dequantize().isfinite().all()
    squared = [(q.dequantize().double() - weight.double()).square() for q in (rounded, moved)]
    before, after = ({place: sum(b) for place, b in blocks(error, scheme).items()} for error in squared)
    # float32 finds the smaller of two sums up to its own rounding
    tiny = 1e-5 * sum(before.values()) + 1e-12 * weight.double().square().sum().item()
    assert all(after[place] <= before[place] + tiny for place in before)


def test_fractions_make_the_error_smaller_and_whole_numbers_are_those_of_rounding():
    weight = normal(64, 256, 0.05)
    rounded = quantize_tensor(weight, GROUPS)
    whole, fraction = hqq_quantize(weight, GROUPS, torch.int8), hqq_quantize(weight, GROUPS)
    assert (whole.zero_point != rounded.zero_point).double().mean() < 0.01
    errors = [(q.dequantize() - weight).square().mean().item() for q in (rounded, whole, fraction)]
    assert 0.99 * errors[0] <= errors[1] <= errors[0] * 1.000001
    assert errors[2] < 0.93 * errors[0]
    assert (rounded.bits_per_weight, fraction.bits_per_weight) == (3.625, 3.75)


@ZERO_DTYPES
def test_zeros_and_constants_come_back_and_a_ragged_block_is_on_its_own(dtype):
    assert torch.equal(hqq_quantize(torch.zeros(2, 64), GROUPS, dtype).dequantize(), torch.zeros(2, 64))
    torch.testing.assert_close(
        hqq_quantize(torch.full((1, 64), 0.3), GROUPS, dtype).dequantize(), torch.full((1, 64), 0.3)
    )
    weight = normal(1, 70)
    last = hqq_quantize(weight[:, 64:].contiguous(), GROUPS, dtype).dequantize()
    assert torch.equal(hqq_quantize(weight, GROUPS, dtype).dequantize()[:, 64:], last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_quantized_as_their_float32_copies(dtype):
    weight = normal(3, 70).to(dtype)
    assert torch.equal(hqq_quantize(weight, GROUPS).dequantize(), hqq_quantize(weight.float(), GROUPS).dequantize())


def test_a_symmetric_scheme_and_a_nan_are_refused():
    with pytest.raises(ValueError, match="needs an asymmetric scheme, not 4-bit symmetric"):
        hqq_quantize(normal(2, 8), Scheme(4))
    with pytest.raises(ValueError, match=r"down cannot be quantized: the value at \[0, 0\] is nan"):
        hqq_quantize(torch.tensor([[float("nan")]]), GROUPS, name="down")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match="asymmetric"):
        hqq_model(model, Scheme(4))


@ZERO_DTYPES
def test_the_result_is_saved_and_loaded_like_any_qtensor(dtype, tmp_path):
    qtensor = hqq_quantize(normal(3, 128), GROUPS, dtype)
    save_tensors({"w": qtensor}, tmp_path / "w.safetensors")
    loaded = load_tensors(tmp_path / "w.safetensors")["w"]
    assert isinstance(loaded, QTensor) and loaded.zero_point.dtype == dtype
    assert torch.equal(loaded.dequantize(), qtensor.dequantize())


@ZERO_DTYPES
def test_a_model_computes_with_the_weights_that_hqq_leaves(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    weights = [hqq_quantize(model[i].weight, GROUPS, dtype).dequantize() for i in (0, 2)]
    x = normal(5, 64)
    expected = torch.relu(x @ weights[0].T + model[0].bias) @ weights[1].T + model[2].bias
    report = hqq_model(model, GROUPS, dtype)
    assert len(report.quantized) == sum(isinstance(layer, QLinear) for layer in model) == 2
    torch.testing.assert_close(model(x), expected)
