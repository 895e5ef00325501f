"""The linear map of lessons 3 to 8: what holds of every tensor, and the edges where others fail."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlib import Scheme, choose_qparams, dequantize, fake_quantize, quant_range, quantize, quantize_tensor
from qlib.affine import expand_groups
from tests.matrices import T
from tests.strategies import GRANULARITIES, at_each, block_of, blocks, examples, schemes, tensors

# Half a step, and what float32 leaves of it after a division, two additions and a multiplication of up to 256 steps.
HALF = 0.5 + 1e-4
WIDTHS = range(1, 9)


def in_steps(original, came_back, scale):
    """The error of each element, counted in steps of its scale."""
    return (came_back.double() - original.double()).abs() / scale


# ---------------------------------------------------------------- the integers


def test_the_range_of_b_bits_holds_two_to_the_b_integers_from_the_lowest_in_twos_complement():
    for bits in WIDTHS:
        qmin, qmax = quant_range(bits)
        assert qmax - qmin + 1 == 2**bits
        assert qmin == -qmax - 1
    assert quant_range(8) == (torch.iinfo(torch.int8).min, torch.iinfo(torch.int8).max) == (-128, 127)
    assert quant_range(4) == (-8, 7)
    assert quant_range(2) == (-2, 1)


# ---------------------------------------------------------------- quantize and dequantize


def test_a_value_in_the_middle_goes_to_the_even_integer():
    assert quantize(torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]), 1.0, 0).tolist() == [-2, -2, 0, 0, 2, 2]


def test_values_outside_the_range_take_its_nearest_end_and_never_wrap():
    for bits in WIDTHS:
        qmin, qmax = quant_range(bits)
        far = torch.tensor([1e20, float("inf"), qmax + 1.0, 300.0, 33000.0, 2.0**31])
        assert quantize(far, 1.0, 0, bits).tolist() == [qmax] * 6
        assert quantize(-far, 1.0, 0, bits).tolist() == [qmin] * 6


def test_float64_values_beyond_float32_saturate_too():
    assert quantize(torch.tensor([1e300, -1e300], dtype=torch.float64), 0.5, 3).tolist() == [127, -128]


@given(st.integers(2, 8), st.floats(1e-6, 1e6), st.data())
def test_within_the_range_any_scale_and_zero_point_come_back_within_half_a_step(bits, scale, data):
    qmin, qmax = quant_range(bits)
    zero_point = data.draw(st.integers(qmin, qmax))
    reals = scale * (torch.linspace(qmin - 0.5, qmax + 0.5, 101) - zero_point)
    values = quantize(reals, scale, zero_point, bits)
    came_back = dequantize(values, scale, zero_point)
    assert values.dtype == torch.int8 and came_back.dtype == torch.float32
    assert values.min() >= qmin and values.max() <= qmax
    assert in_steps(reals, came_back, scale).max() <= HALF


@examples((0.37, -128), (0.37, 127))
@given(st.floats(1e-6, 1e6), st.integers(-128, 127))
def test_zero_is_the_zero_point_and_comes_back_as_exactly_zero(scale, zero_point):
    values = quantize(torch.tensor([0.0, -0.0]), scale, zero_point)
    assert values.tolist() == [zero_point] * 2
    assert dequantize(values, scale, zero_point).tolist() == [0.0, 0.0]


def test_dequantize_subtracts_in_real_numbers_where_int8_would_wrap():
    values = torch.tensor([127, -128], dtype=torch.int8)
    assert dequantize(values, 1.0, torch.tensor(-128, dtype=torch.int8)).tolist() == [255.0, 0.0]
    assert dequantize(values, 1.0, torch.tensor(127, dtype=torch.int8)).tolist() == [0.0, -255.0]


@given(tensors(), schemes())
def test_quantizing_what_came_back_gives_the_same_integers(tensor, scheme):
    qtensor = quantize_tensor(tensor, scheme)
    scale, zero_point = (expand_groups(q, tensor, scheme.group_size) for q in (qtensor.scale, qtensor.zero_point))
    again = quantize(qtensor.dequantize(), scale, zero_point, scheme.bits)
    assert torch.equal(again, qtensor.values)


@given(tensors(), schemes())
def test_fake_quantize_is_the_trip_there_and_back(tensor, scheme):
    assert torch.equal(fake_quantize(tensor, scheme), quantize_tensor(tensor, scheme).dequantize())


def test_the_input_is_left_as_it_was():
    original = T.clone()
    quantize(T, 3.5, -70)
    for options, symmetric in itertools.product(GRANULARITIES.values(), [True, False]):
        fake_quantize(T, Scheme(symmetric=symmetric, **options))
    assert torch.equal(T, original)


# ---------------------------------------------------------------- choose_qparams


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"axis": None}, ()),
        ({"axis": 0}, (6, 1)),
        ({"axis": 1}, (1, 10)),
        ({"group_size": 5}, (6, 2)),
        ({"group_size": 4}, (6, 3)),
        ({"group_size": 64}, (6, 1)),
    ],
    ids=str,
)
def test_the_contracts_shapes_and_dtypes(options, shape):
    matrix = torch.linspace(-1, 2, 60).reshape(6, 10)
    scale, zero_point = choose_qparams(matrix, Scheme(symmetric=False, **options))
    assert (scale.shape, scale.dtype) == (shape, torch.float32)
    assert (zero_point.shape, zero_point.dtype) == (shape, torch.int8)
    scale, zero_point = choose_qparams(matrix, Scheme(symmetric=True, **options))
    assert (scale.shape, scale.dtype) == (shape, torch.float32)
    assert zero_point.item() == 0 and not zero_point.is_floating_point()


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((7,), {"axis": 0}, (1,)),
        ((7,), {"axis": 1}, (7,)),
        ((7,), {"group_size": 3}, (3,)),
        ((2, 3, 7), {"axis": 0}, (2, 1, 1)),
        ((2, 3, 4, 7), {"axis": 0}, (2, 1, 1, 1)),
        ((2, 3, 4, 7), {"axis": 1}, (1, 3, 1, 1)),
        ((2, 3, 4, 7), {"group_size": 3}, (2, 3, 4, 3)),
        ((), {"axis": 0}, ()),
    ],
    ids=str,
)
def test_the_shapes_for_vectors_and_for_more_than_two_dimensions(shape, options, expected):
    assert choose_qparams(torch.ones(shape), Scheme(**options))[0].shape == expected


@given(tensors(), schemes())
def test_each_block_has_the_scale_and_the_zero_point_that_paper_and_pencil_give(tensor, scheme):
    qmin, qmax = quant_range(scheme.bits)
    scale, zero_point = choose_qparams(tensor, scheme)
    for place, elements in blocks(tensor.float(), scheme).items():
        low, high = np.float32(min(*elements, 0.0)), np.float32(max(*elements, 0.0))
        span = max(-low, high) / np.float32(qmax) if scheme.symmetric else (high - low) / np.float32(qmax - qmin)
        expected = span if span >= np.finfo(np.float32).tiny else np.float32(1)
        assert scale[place].item() == expected
        if not scheme.symmetric:
            assert zero_point[place].item() == np.round(np.float32(qmin) - low / expected)


@given(tensors(), schemes())
def test_every_tensor_comes_back_within_half_a_step(tensor, scheme):
    scale, _ = choose_qparams(tensor, scheme)
    came_back = fake_quantize(tensor, scheme)
    assert (came_back.shape, came_back.dtype) == (tensor.shape, torch.float32)
    assert in_steps(tensor.float(), came_back, at_each(scale, tensor, scheme)).max() <= HALF


@given(tensors(), schemes())
def test_real_zero_comes_back_as_exactly_zero(tensor, scheme):
    tensor = tensor.clone()
    tensor.view(-1)[:: 2 if tensor.numel() > 1 else 1] = 0.0
    assert (fake_quantize(tensor, scheme)[tensor == 0] == 0).all()


def test_symmetric_mode_keeps_the_lowest_integer_out_of_the_scale_but_clamps_to_it():
    scale, _ = choose_qparams(torch.tensor([-127.0, 63.5]), Scheme(axis=None))
    assert scale.item() == 1.0
    assert quantize(torch.tensor([-127.0, 63.5, -127.9, -200.0]), scale, 0).tolist() == [-127, 64, -128, -128]


# ---------------------------------------------------------------- the edges


@given(schemes())
def test_a_range_far_from_zero_is_widened_to_hold_zero(scheme):
    far = torch.tensor([[100.0, 101.0, 102.0, 103.0]])
    for tensor in (far, -far):
        scale, _ = choose_qparams(tensor, scheme)
        came_back = fake_quantize(tensor, scheme)
        assert in_steps(tensor, came_back, at_each(scale, tensor, scheme)).max() <= HALF
        assert came_back.abs().min() > 50


def test_at_8_bits_100_to_103_comes_back_close_to_100_to_103():
    came_back = fake_quantize(torch.tensor([100.0, 101.0, 102.0, 103.0]), Scheme(symmetric=False, axis=None))
    assert came_back.tolist() == pytest.approx([100, 101, 102, 103], abs=103 / 255 / 2 + 1e-4)


TINY = [0.0, -0.0, 1e-44, -1e-44]  # no float32 scale is as small as these would need


@settings(max_examples=50)  # each with eight edges
@given(schemes(), st.floats(2.0**-100, 2.0**100, width=32))
def test_constant_zero_and_tiny_blocks_have_finite_scales_and_finite_values(scheme, drawn):
    for value in (*TINY, 5.0, -5.0, 1e-30, -1e-30, drawn, -drawn):
        tensor = torch.full((2, 4), value)
        tensor[1] = 0.0
        scale, zero_point = choose_qparams(tensor, scheme)
        came_back = fake_quantize(tensor, scheme)
        assert torch.isfinite(scale).all() and (scale > 0).all()
        assert (came_back[1] == 0).all()
        assert (zero_point.long() - quant_range(scheme.bits)[0]).min() >= 0
        assert came_back[0].tolist() == pytest.approx([0.0 if value in TINY else value] * 4, rel=1e-6, abs=0)


@given(schemes())
def test_empty_tensors_have_finite_scales_and_come_back_empty(scheme):
    for shape in ((0,), (0, 4), (4, 0), (2, 0, 3)):
        scale, _ = choose_qparams(torch.empty(shape), scheme)
        assert torch.isfinite(scale).all()
        assert fake_quantize(torch.empty(shape), scheme).shape == shape


@given(schemes(), st.floats(-1e6, 1e6, width=32).filter(lambda number: abs(number) > 1e-30))
def test_a_single_number_without_dimensions_is_quantized(scheme, number):
    assert fake_quantize(torch.tensor(number), scheme).item() == pytest.approx(number, rel=1e-6)


def test_scales_of_half_precision_weights_are_float32_and_do_not_underflow():
    for dtype, symmetric in itertools.product([torch.float16, torch.bfloat16], [True, False]):
        weights, scheme = torch.tensor([[6e-8, -6e-8, 3e-7, 0.0]], dtype=dtype), Scheme(symmetric=symmetric)
        scale, _ = choose_qparams(weights, scheme)
        assert scale.dtype == torch.float32
        assert scale.item() > 0 and scale.to(torch.float16).item() == 0, "as float16 this scale would be zero"
        assert in_steps(weights.float(), fake_quantize(weights, scheme), scale.item()).max() <= HALF


@examples((1536, 100, False), (100, 32, True), (10, 4, False), (5, 7, True), (7, 1, False), (9, 8, True))
@given(st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_a_ragged_last_group_is_right_to_the_last_element(columns, group_size, symmetric):
    tensor = torch.linspace(-1, 1, 3 * columns).reshape(3, columns) ** 3
    tensor[:, -1] = torch.tensor([40.0, -50.0, 0.001])  # the last group has a range of its own
    scheme = Scheme(4, symmetric, group_size=group_size)
    scale, _ = choose_qparams(tensor, scheme)
    assert scale.shape == (3, -(-columns // group_size))
    assert in_steps(tensor, fake_quantize(tensor, scheme), at_each(scale, tensor, scheme)).max() <= HALF
    last = tensor[:, (columns - 1) // group_size * group_size :]
    alone, _ = choose_qparams(last.contiguous(), Scheme(4, symmetric, axis=0))
    assert torch.equal(scale[:, -1:], alone), "the filling of a ragged group must not show"


# ---------------------------------------------------------------- groups, spread over their columns


@given(st.integers(1, 12), st.integers(1, 12))
def test_groups_are_spread_over_the_columns_they_cover(columns, group_size):
    groups = -(-columns // group_size)
    scale = torch.arange(2.0 * groups).reshape(2, groups) + 1
    spread = expand_groups(scale, torch.empty(2, columns), group_size).expand(2, columns)
    scheme = Scheme(group_size=group_size)
    expected = [[scale[block_of((row, column), scheme)].item() for column in range(columns)] for row in range(2)]
    assert spread.tolist() == expected


def test_quantize_takes_scales_per_group_where_the_groups_are_equal():
    scheme = Scheme(group_size=2)
    matrix = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 0.7, 0.8]])
    scale, zero_point = choose_qparams(matrix, scheme)
    values = quantize(matrix, scale, zero_point)
    assert values.tolist() == [[64, 127, 95, 127], [106, 127, 111, 127]]
    assert torch.equal(dequantize(values, scale, zero_point), fake_quantize(matrix, scheme))


def test_groups_that_do_not_cover_the_columns_are_refused():
    with pytest.raises(ValueError, match="10 columns do not make 3 equal groups"):
        quantize(torch.ones(2, 10), torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match="10 columns in groups of 4 need 3 scales a row, not 2"):
        expand_groups(torch.ones(2, 2), torch.ones(2, 10), 4)


def test_a_vector_of_row_scales_is_not_mistaken_for_groups():
    with pytest.raises(RuntimeError, match="size of tensor"):
        quantize(torch.ones(2, 4), torch.tensor([1.0, 2.0]), 0)
