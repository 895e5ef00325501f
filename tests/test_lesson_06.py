"""The figures of lesson 6: what an outlier does, where the real ones are, and what granularity costs."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.figures import lesson_06 as figures
from course.figures.shared import block_numbers
from course.models import load_encoder
from qlib import Scheme, choose_qparams, quantize_tensor
from qlib.affine import expand_groups
from qlib.report import bits_per_weight, quantization_error, sqnr, weight_bytes
from tests.matrices import T
from tests.strategies import examples, schemes

TAME = torch.tensor(
    [
        [0.031, -0.052, 0.008, 0.067, -0.024, 0.045],
        [-0.083, 0.019, 0.058, -0.037, 0.072, -0.011],
        [0.026, 0.094, -0.066, 0.003, -0.041, 0.085],
        [-0.015, 0.049, 0.077, -0.098, 0.012, 0.036],
    ]
)

PER_TENSOR = Scheme(axis=None)


@pytest.fixture(scope="module")
def encoder():
    model, _ = load_encoder()
    return model


@pytest.fixture(scope="module")
def outputs(encoder):
    """The six output.dense weights, (384, 1536)."""
    return [layer.output.dense.weight.detach() for layer in encoder.encoder.layer]


def back(tensor, scheme):
    return quantize_tensor(tensor, scheme).dequantize()


# ---------------------------------------------------------------- one scale, one outlier


def test_the_courses_figure_per_tensor():
    qtensor = quantize_tensor(T, PER_TENSOR)
    assert qtensor.scale.item() == pytest.approx(5.7370, abs=5e-5)
    assert quantization_error(T, qtensor.dequantize()) == pytest.approx(2.5092, abs=5e-5)
    assert (qtensor.values[1].min(), qtensor.values[1].max()) == (-32, 52)


def test_one_outlier_leaves_the_others_five_integers_and_nine_decibels():
    wild = TAME.clone()
    wild[1, 4] = 7.9
    others = torch.ones_like(wild, dtype=torch.bool)
    others[1, 4] = False
    qtensor = quantize_tensor(wild, PER_TENSOR)
    assert quantize_tensor(TAME, PER_TENSOR).values.unique().numel() == TAME.numel()
    assert qtensor.values[others].unique().tolist() == [-2, -1, 0, 1, 2]
    assert qtensor.dequantize()[1, 4] == wild[1, 4]
    assert sqnr(TAME, back(TAME, PER_TENSOR)) == pytest.approx(47.3, abs=0.05)
    assert sqnr(wild, qtensor.dequantize()) == pytest.approx(38.7, abs=0.06)
    assert sqnr(wild[others], qtensor.dequantize()[others]) == pytest.approx(8.9, abs=0.05)


# ---------------------------------------------------------------- the encoder's outliers


def test_the_five_largest_outliers_are_in_output_dense(encoder):
    ratios = {
        name: (weight.abs().max() / weight.double().std()).item()
        for name, weight in encoder.encoder.named_parameters()
        if weight.ndim == 2
    }
    assert len(ratios) == 36
    top = sorted(ratios, key=ratios.get, reverse=True)[:5]
    assert top == [f"layer.{number}.output.dense.weight" for number in (0, 2, 1, 3, 4)]
    assert ratios[top[0]] == pytest.approx(174.72, abs=0.01)


def test_the_outlier_of_layer_0(outputs):
    W = outputs[0]
    largest = W.abs().flatten().topk(2)
    assert divmod(largest.indices[0].item(), 1536) == (99, 856)
    assert largest.values.tolist() == pytest.approx([7.9148, 1.2384], abs=1e-4)
    assert W.double().std().item() == pytest.approx(0.0453, abs=5e-5)


def test_at_8_bits_seven_integers_serve_999_in_a_thousand(outputs):
    values = quantize_tensor(outputs[0], PER_TENSOR).values
    shares = [(values.abs() <= reach).double().mean().item() for reach in range(5)]
    assert shares[2] < 0.999 < shares[3]
    assert shares == pytest.approx([0.5493, 0.9628, 0.9976, 0.9996, 0.9999], abs=1e-4)
    assert (quantize_tensor(outputs[0], Scheme(4, axis=None)).values != 0).sum() == 8


def test_the_decibels_beside_the_query_weights(encoder, outputs):
    query = encoder.encoder.layer[0].attention.self.query.weight.detach()
    found = [sqnr(w, back(w, Scheme(b, s, None))) for w in (query, outputs[0]) for b in (8, 4) for s in (True, False)]
    assert found == pytest.approx([34.7, 35.45, 9.54, 10.85, 8.06, 13.42, 0.24, 0.27], abs=0.01)


def test_outliers_gather_in_rows_more_than_in_columns(outputs):
    beyond = [w.abs() > 10 * w.double().std() for w in outputs]
    assert [b.sum().item() for b in beyond] == [14, 23, 21, 35, 32, 169]
    assert [b.sum(1).max().item() for b in beyond] == [5, 4, 16, 10, 18, 72]
    assert [b.sum(0).max().item() for b in beyond] == [2, 8, 2, 4, 2, 3]
    assert [b.sum(1).argmax().item() for b in beyond] == [267, 267, 223, 127, 223, 223]
    assert [w.abs().argmax().item() // 1536 for w in outputs] == [99, 99, 99, 99, 223, 319]


def test_no_count_of_outliers_hangs_on_a_last_digit(outputs):
    for w in outputs:
        assert ((w.abs() / (10 * w.double().std()) - 1).abs() > 1e-4).all()


# ---------------------------------------------------------------- the price


@examples(*(((384, 1536), Scheme(3, symmetric, group_size=100)) for symmetric in (True, False)))
@given(st.tuples(st.integers(1, 6), st.integers(1, 40)), schemes() | schemes(group_size=100, axis=0))
def test_bits_per_weight_are_those_that_a_qtensor_takes(shape, scheme):
    assert bits_per_weight(shape, scheme) == quantize_tensor(torch.ones(shape), scheme).bits_per_weight


def test_bits_per_weight_and_the_calculator_of_lesson_1_agree():
    for count, bits, group_size, symmetric in itertools.product(
        (1, 7, 64, 1000), (2, 3, 4, 8), (1, 16, 64), (True, False)
    ):
        scheme = Scheme(bits, symmetric, group_size=group_size)
        nbytes = weight_bytes(count, bits, group_size, symmetric)
        assert bits_per_weight((1, count), scheme) == 8 * nbytes / count
        assert bits_per_weight((5, count), scheme) == 8 * 5 * nbytes / (5 * count)


def test_the_figures_of_the_price():
    shape = (384, 1536)
    assert bits_per_weight((2, 8), Scheme(4)) == 8
    assert bits_per_weight(shape, Scheme(4, group_size=8)) == 8
    assert bits_per_weight(shape, Scheme(4, group_size=16)) == 6
    assert bits_per_weight(shape, Scheme(4, symmetric=False, group_size=32)) == 5.25
    assert bits_per_weight(shape, Scheme(8)) == pytest.approx(8.02, abs=0.005)
    assert bits_per_weight(shape, Scheme(8, axis=1)) == pytest.approx(8.08, abs=0.005)
    assert bits_per_weight((3, 3), Scheme(8)) == pytest.approx(18.67, abs=0.005)


def test_a_shape_that_is_a_torch_size_will_do():
    assert bits_per_weight(TAME.shape, PER_TENSOR) == bits_per_weight((4, 6), PER_TENSOR)


# ---------------------------------------------------------------- pictures


def test_the_picture_of_granularity_numbers_the_scales_as_the_library_deals_them_out():
    assert block_numbers((2, 3), PER_TENSOR).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert block_numbers((2, 3), Scheme(axis=0)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert block_numbers((2, 3), Scheme(axis=1)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert block_numbers((2, 3), Scheme(group_size=2)).tolist() == [[0, 0, 1], [2, 2, 3]]
    picture = figures.sharing((3, 7), [PER_TENSOR, Scheme(group_size=3)])
    assert "per tensor, 1 scale for 21 weights; per group of 3, 9 scales for 3 or 1 weights each" in picture.caption


def test_weights_with_the_same_number_share_a_scale_and_others_do_not():
    generator = torch.Generator().manual_seed(0)
    for scheme in (PER_TENSOR, Scheme(), Scheme(axis=1), Scheme(group_size=4)):
        tensor = torch.rand(5, 10, generator=generator)
        numbers = block_numbers(tensor.shape, scheme)
        scales = expand_groups(choose_qparams(tensor, scheme)[0], tensor, scheme.group_size).expand_as(tensor)
        pairs = set(zip(numbers.flatten().tolist(), scales.flatten().tolist(), strict=True))
        assert len(pairs) == numbers.unique().numel() == scales.unique().numel()


def test_the_picture_of_the_maxima_names_the_row_and_the_column():
    tensor = torch.full((4, 6), 0.5)
    tensor[2, 5] = -3.0
    caption = figures.channel_maxima(tensor, "A matrix").caption
    assert "the largest 3 in row 2" in caption
    assert "the largest 3 in column 5" in caption
    assert "in the 4 rows the median is 0.5" in caption


def test_the_picture_of_integers_counts_the_different_ones():
    values = torch.tensor([[-2, 0], [0, 1]], dtype=torch.int8)
    assert (
        "of -2 to 1 that there are. a: 3 different ones from -2 to 1" in figures.integers({"a": values}, bits=2).caption
    )
