"""What lesson 4 says of the scale and the zero point holds: on the 3x3 matrix, at the edges, on a real matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course import helper
from course.exercises.exercise import find_exercise
from course.exercises.judge import INCORRECT, judge
from course.figures import lesson_04 as figures
from qlib import Scheme, choose_qparams, dequantize, quant_range, quantize, quantize_tensor
from qlib.affine import asymmetric_qparams
from qlib.report import quantization_error, sqnr
from tests.matrices import T
from tests.test_plot import assert_draws


def per_tensor(bits=8):
    return Scheme(bits, symmetric=False, axis=None)


def round_trip(tensor, scale, zero_point, bits=8):
    return dequantize(quantize(tensor, scale, zero_point, bits), scale, zero_point)


# ---------------------------------------------------------------- the 3x3 matrix


def test_the_two_equations_give_the_lessons_figures():
    scale, zero_point = choose_qparams(T, per_tensor())
    assert scale.item() == pytest.approx(3.5788, abs=5e-5)
    assert (-128 - T.min() / scale).item() == pytest.approx(-76.59, abs=5e-3)
    assert (127 - T.max() / scale).item() == pytest.approx(-76.59, abs=5e-3)
    assert zero_point.item() == -77
    assert quantization_error(T, round_trip(T, scale, zero_point)) == pytest.approx(1.5730, abs=5e-5)
    assert quantization_error(T, round_trip(T, 3.5, -70)) == pytest.approx(170.8753, abs=5e-5)


@pytest.mark.parametrize(
    ("bits", "scale", "zero_point", "mse"),
    [(8, 3.58, -77, 1.57), (4, 60.84, -5, 161.99), (3, 130.37, -3, 1517.49), (2, 304.2, -1, 6619.41)],
)
def test_scale_zero_point_and_error_at_fewer_bits(bits, scale, zero_point, mse):
    qtensor = quantize_tensor(T, per_tensor(bits))
    assert qtensor.scale.item() == pytest.approx(scale, abs=5e-3)
    assert qtensor.zero_point.item() == zero_point
    assert quantization_error(T, qtensor.dequantize()) == pytest.approx(mse, abs=5e-3)


def test_no_other_zero_point_does_better_at_this_scale():
    scale, _ = choose_qparams(T, per_tensor())
    errors = {z: quantization_error(T, round_trip(T, scale, z)) for z in range(-128, 128)}
    best, second, *_ = sorted(errors, key=errors.get)
    assert (best, second) == (-77, -76)


def test_a_zero_point_that_is_not_rounded_loses_every_zero():
    scale, _ = choose_qparams(T, per_tensor())
    exact = -128 - T.min() / scale
    assert torch.allclose(round_trip(torch.zeros(5), scale, exact), torch.tensor(-1.48), atol=1e-3)
    assert torch.equal(round_trip(torch.zeros(5), scale, exact.round()), torch.zeros(5))
    assert quantization_error(T, round_trip(T, scale, exact)) == pytest.approx(0.5901, abs=5e-5)


def test_the_integers_mean_nothing_without_their_own_pair():
    qtensor = quantize_tensor(T, per_tensor())
    misread = dequantize(qtensor.values, 3.5, -70)
    assert not torch.isclose(misread, qtensor.dequantize()).any()
    assert quantization_error(T, misread) == pytest.approx(870.86, abs=5e-3)


def test_the_course_gives_the_same_integers():
    integers, scale, zero_point = helper.linear_quantization(T)
    qtensor = quantize_tensor(T, per_tensor())
    assert torch.equal(integers, qtensor.values)
    assert (scale, zero_point) == (qtensor.scale.item(), qtensor.zero_point.item())
    assert (qtensor.nbytes, round(qtensor.bits_per_weight, 1)) == (14, 12.4)


# ---------------------------------------------------------------- the edges

EDGES = [[100, 101, 102, 103], [-3, -1.37, -1], [5, 5, 5], [-5, -5], [0, 0, 0], [0, 7.3], [-7.3, 0], [1e-30, -2e-30]]


@given(st.sampled_from(EDGES), st.integers(2, 8))
def test_at_the_edges_no_number_is_more_than_half_a_step_off_and_zero_is_exact(numbers, bits):
    tensor = torch.tensor(numbers, dtype=torch.float32)
    scale, zero_point = choose_qparams(tensor, per_tensor(bits))
    assert scale > 0 and scale.isfinite()
    error = (round_trip(tensor, scale, zero_point, bits) - tensor).abs()
    assert error.max() <= scale / 2 * (1 + 1e-4)
    assert round_trip(torch.zeros(1), scale, zero_point, bits) == 0


def test_clamping_the_zero_point_of_a_range_without_zero_gives_3_for_all():
    tensor = torch.tensor([100.0, 101.0, 102.0, 103.0])
    scale = 3 / 255
    unclamped = round(-128 - 100 / scale)
    assert unclamped == -8628
    assert torch.allclose(round_trip(tensor, scale, -128), torch.tensor(3.0))
    assert torch.allclose(round_trip(tensor, scale, torch.tensor(unclamped).to(torch.int8).item()), torch.tensor(0.6))
    assert quantize_tensor(tensor, per_tensor()).dequantize()[3] == pytest.approx(103)


@given(st.integers(2, 8))
def test_once_the_range_holds_zero_the_zero_point_needs_no_clamp(bits):
    qmin, qmax = quant_range(bits)
    magnitudes = torch.logspace(-20, 20, 401)
    low, high = -magnitudes[:, None], magnitudes[None, :]
    raw = torch.round(qmin - low / ((high - low) / (qmax - qmin)))
    assert raw.min() >= qmin and raw.max() <= qmax
    assert torch.equal(asymmetric_qparams(low.expand_as(raw), high.expand_as(raw), bits)[1].float(), raw)


def test_numbers_of_one_sign_put_the_zero_point_at_an_end():
    ends = {name: asymmetric_qparams(*map(torch.tensor, e)) for name, e in {"+": (5.0, 9.0), "-": (-9.0, -5.0)}.items()}
    assert {name: z.item() for name, (_, z) in ends.items()} == {"+": -128, "-": 127}


# ---------------------------------------------------------------- a real weight matrix


@pytest.fixture(scope="module")
def query_weight():
    from course.models import load_encoder

    model, _ = load_encoder()
    return model.encoder.layer[0].attention.self.query.weight.detach()


def test_no_weight_is_more_than_half_a_step_off(query_weight):
    for bits in range(2, 9):
        qtensor = quantize_tensor(query_weight, per_tensor(bits))
        assert (qtensor.dequantize() - query_weight).abs().max() <= qtensor.scale * (0.5 + 1e-4)


def test_a_bit_is_worth_about_6_decibels_until_most_weights_are_zero(query_weight):
    quantized = {bits: quantize_tensor(query_weight, per_tensor(bits)) for bits in range(2, 9)}
    ratio = {bits: sqnr(query_weight, qtensor.dequantize()) for bits, qtensor in quantized.items()}
    assert all(6 < ratio[bits] - ratio[bits - 1] < 6.5 for bits in range(4, 9))
    assert ratio[3] - ratio[2] < 4
    assert ratio[2] == pytest.approx(0.49, abs=5e-3)
    assert (quantized[2].values == quantized[2].zero_point).float().mean() == pytest.approx(0.98, abs=5e-3)
    assert sqnr(query_weight, torch.zeros_like(query_weight)) == 0


def test_scale_and_zero_point_weigh_nothing_on_a_real_matrix(query_weight):
    for bits in (8, 4):
        assert quantize_tensor(query_weight, per_tensor(bits)).bits_per_weight == pytest.approx(bits + 0.0003, abs=5e-5)


def test_clipping_helps_at_4_bits_and_harms_at_8(query_weight):
    def error(keep, bits):
        scale, zero_point = asymmetric_qparams(query_weight.min() * keep, query_weight.max() * keep, bits)
        return quantization_error(query_weight, round_trip(query_weight, scale, zero_point, bits))

    assert error(0.99, 4) / error(1, 4) == pytest.approx(0.98, abs=5e-3)
    assert error(0.4, 4) < error(1, 4) / 4
    assert error(0.4, 8) > error(1, 8) * 20


# ---------------------------------------------------------------- the picture of rulers


def test_the_caption_of_rulers_says_what_is_clipped_and_what_is_wasted():
    caption = repr(figures.rulers(T, {"old": (3.5, -70, 8), "new": (3.5788, -77, 8)}))
    assert caption == (
        "9 numbers from -184 to 728.6. "
        "old: 256 marks from -203 to 689.5, 3.5 apart; 0.0 is the integer -70; "
        "1 of 9 numbers clipped, 5 marks unused. "
        "new: 256 marks from -182.5 to 730.1, 3.579 apart; 0.0 is the integer -77; "
        "0 of 9 numbers clipped, 0 marks unused."
    )


@pytest.mark.parametrize("zero_point", [-2.59, 4, -8628])
def test_rulers_say_where_zero_has_no_integer(zero_point):
    assert "0.0 has no integer of its own" in repr(figures.rulers(T, {"ruler": (130.4, zero_point, 3)}))


def test_rulers_draw_a_single_number_and_very_many(tmp_path):
    for tensor in (torch.tensor(5.0), torch.zeros(3), torch.linspace(-1, 1, 1000).reshape(10, 100)):
        choices = {f"{bits} bits": (*choose_qparams(tensor, per_tensor(bits)), bits) for bits in (8, 2)}
        picture = figures.rulers(tensor, choices)
        assert_draws(picture, tmp_path / "rulers.png")
        assert picture.caption.startswith(f"{tensor.numel()} number")


# ---------------------------------------------------------------- the exercises


def test_a_result_that_is_no_qtensor_is_told_in_words():
    def returns_a_dict(tensor, scheme):
        return {"values": tensor}

    verdict = judge(find_exercise("04.2"), returns_a_dict)
    assert verdict.outcome == INCORRECT
    assert verdict.message.startswith("With the 3x3 matrix at 8 bits: the result is a dict, expected a QTensor.")
