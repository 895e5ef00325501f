"""PyTorch's own quantizers and observers give what qlib gives, but for exact ties, which they break another way.

They multiply by 1 / scale, and fake_quantize rounds before it adds the zero point; qlib divides, adds and then rounds.
So they may differ by one where a value lies on, or within float32's rounding of, the middle between two integers.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlib import Scheme, choose_qparams, dequantize, fake_quantize, quant_range, quantize
from qlib.affine import symmetric_qparams

# PyTorch is giving these names up in favour of torchao; as an oracle they are as good as ever.
pytestmark = pytest.mark.filterwarnings("ignore")

NEAR_A_TIE = 1e-4
WEIGHTS = torch.randn(120, 200, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 3, 120)[:, None]
SKEWED = WEIGHTS.abs() ** 1.5 - 0.4
# So few that Hypothesis tries every combination of them.
DATA, WIDTHS, AXES = st.sampled_from([WEIGHTS, SKEWED]), st.integers(2, 8), st.sampled_from([0, 1])


def clear_of_ties(tensor, scale, zero_point):
    """Where a value is farther than NEAR_A_TIE from the middle between two integers: all but a few places."""
    exact = tensor.double() / scale + zero_point
    clear = (exact - exact.floor() - 0.5).abs() > NEAR_A_TIE
    assert (~clear).double().mean() < 0.01, "a comparison that leaves out this much shows nothing"
    return clear


def assert_same_but_for_ties(ours, theirs, tensor, scale, zero_point):
    clear = clear_of_ties(tensor, scale, zero_point)
    assert torch.equal(ours[clear], theirs[clear])
    apart = (ours.double() - theirs.double()).abs() / (1 if not ours.is_floating_point() else scale)
    assert apart.max() < 1.001, "at a tie the two may be neighbours, no more"


@given(DATA, st.booleans())
def test_quantize_per_tensor_agrees_to_the_element(data, symmetric):
    scale, zero_point = choose_qparams(data, Scheme(8, symmetric, axis=None))
    theirs = torch.quantize_per_tensor(data, scale.item(), zero_point.item(), torch.qint8)
    ours = quantize(data, scale, zero_point)
    assert_same_but_for_ties(ours, theirs.int_repr(), data, scale, zero_point)
    assert torch.equal(dequantize(theirs.int_repr(), scale, zero_point), theirs.dequantize())


@given(DATA, AXES, st.booleans())
def test_quantize_per_channel_agrees_to_the_element(data, axis, symmetric):
    scale, zero_point = choose_qparams(data, Scheme(8, symmetric, axis=axis))
    zero_points = zero_point.expand_as(scale)
    theirs = torch.quantize_per_channel(data, scale.flatten(), zero_points.flatten().long(), axis, torch.qint8)
    ours = quantize(data, scale, zero_point)
    assert_same_but_for_ties(ours, theirs.int_repr(), data, scale, zero_point)
    theirs_back = theirs.dequantize()
    assert torch.allclose(dequantize(theirs.int_repr(), scale, zero_point), theirs_back, rtol=1e-6, atol=0)


@given(DATA, WIDTHS, st.booleans())
def test_fake_quantize_per_tensor_agrees_to_the_element(data, bits, symmetric):
    scheme = Scheme(bits, symmetric, axis=None)
    scale, zero_point = choose_qparams(data, scheme)
    theirs = torch.fake_quantize_per_tensor_affine(data, scale, zero_point.int(), *quant_range(bits))
    assert_same_but_for_ties(fake_quantize(data, scheme), theirs, data, scale, zero_point)


@given(DATA, WIDTHS, AXES, st.booleans())
def test_fake_quantize_per_channel_agrees_to_the_element(data, bits, axis, symmetric):
    scheme = Scheme(bits, symmetric, axis=axis)
    scale, zero_point = choose_qparams(data, scheme)
    theirs = torch.fake_quantize_per_channel_affine(
        data, scale.flatten(), zero_point.expand_as(scale).flatten().int(), axis, *quant_range(bits)
    )
    assert_same_but_for_ties(fake_quantize(data, scheme), theirs, data, scale, zero_point)


@given(WIDTHS)
def test_groups_agree_with_fake_quantize_per_channel_on_a_row_a_group(bits):
    scheme = Scheme(bits, symmetric=False, group_size=40)
    as_rows = WEIGHTS.reshape(-1, 40)
    scale, zero_point = choose_qparams(as_rows, Scheme(bits, symmetric=False, axis=0))
    theirs = torch.fake_quantize_per_channel_affine(
        as_rows, scale.flatten(), zero_point.flatten().int(), 0, *quant_range(bits)
    )
    assert_same_but_for_ties(fake_quantize(WEIGHTS, scheme).reshape(-1, 40), theirs, as_rows, scale, zero_point)


def test_on_an_exact_tie_fake_quantize_takes_the_other_neighbour_for_it_adds_the_zero_point_last():
    half_way, scale, zero_point = torch.tensor([0.5]), 1.0, 1
    ours = dequantize(quantize(half_way, scale, zero_point), scale, zero_point)
    theirs = torch.fake_quantize_per_tensor_affine(half_way, scale, zero_point, -128, 127)
    assert ours.tolist() == [2 - 1], "round(0.5 + 1) is 2, for 2 is even"
    assert theirs.tolist() == [1 - 1], "round(0.5) + 1 is 1, for 0 is even"


def test_next_to_a_tie_pytorch_takes_the_other_neighbour_for_it_multiplies_by_one_over_the_scale():
    value, scale = torch.tensor([-2.25]), torch.tensor(0.3)
    assert (value / scale).item() > -7.5 == (value * (1 / scale)).item()
    assert quantize(value, scale, 0).tolist() == [-7]
    assert torch.quantize_per_tensor(value, scale.item(), 0, torch.qint8).int_repr().tolist() == [-8]


# ---------------------------------------------------------------- scales and zero points


@given(DATA, WIDTHS)
def test_asymmetric_scales_are_those_of_pytorchs_minmax_observer(data, bits):
    qmin, qmax = quant_range(bits)
    observer = torch.ao.quantization.MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_affine, quant_min=qmin, quant_max=qmax
    )
    observer(data)
    theirs_scale, theirs_zero_point = observer.calculate_qparams()
    scale, zero_point = choose_qparams(data, Scheme(bits, symmetric=False, axis=None))
    assert scale.item() == pytest.approx(theirs_scale.item(), rel=1e-6)
    assert zero_point.item() == theirs_zero_point.item()


@given(AXES)
def test_asymmetric_scales_per_channel_are_those_of_pytorchs_observer(axis):
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        ch_axis=axis, dtype=torch.qint8, qscheme=torch.per_channel_affine, quant_min=-128, quant_max=127
    )
    observer(SKEWED)
    theirs_scale, theirs_zero_point = observer.calculate_qparams()
    scale, zero_point = choose_qparams(SKEWED, Scheme(8, symmetric=False, axis=axis))
    torch.testing.assert_close(scale.flatten(), theirs_scale, rtol=1e-6, atol=0)
    assert zero_point.flatten().tolist() == theirs_zero_point.tolist()


@given(WIDTHS)
def test_symmetric_scales_are_those_of_pytorchs_observer_over_minus_qmax_to_qmax(bits):
    """Its default spreads absmax over half of all the steps, 127.5 at 8 bits; qlib's contract is absmax / qmax."""
    _, qmax = quant_range(bits)
    observer = torch.ao.quantization.MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-qmax, quant_max=qmax
    )
    observer(WEIGHTS)
    theirs_scale, theirs_zero_point = observer.calculate_qparams()
    scale, zero_point = choose_qparams(WEIGHTS, Scheme(bits, axis=None))
    assert scale.item() == pytest.approx(theirs_scale.item(), rel=1e-6)
    assert zero_point.item() == theirs_zero_point.item() == 0


def test_symmetric_scales_by_hand():
    scales = [symmetric_qparams(torch.tensor(10.0), bits)[0].item() for bits in (8, 4, 3, 2)]
    assert scales == pytest.approx([10 / 127, 10 / 7, 10 / 3, 10.0], rel=1e-6)
