"""Lesson 5: its figures, the course's names, scales of either sign, and the grid."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course import helper
from course.figures import lesson_05 as figures
from course.models import DATA, load_encoder, load_sentences
from qlib import Scheme, choose_qparams, dequantize, fake_quantize, load_tensors, quant_range, quantize
from qlib.affine import asymmetric_qparams, full_range_qparams, symmetric_qparams
from qlib.report import quantization_error, sqnr
from tests.matrices import T


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def weight(encoder):
    return encoder[0].encoder.layer[0].attention.self.query.weight.detach()


@pytest.fixture(scope="module")
def activation():
    return load_tensors(DATA / "activations.safetensors")["gelu"]


@pytest.fixture(scope="module")
def before_gelu(encoder):
    """What goes into the GELU of each block when the encoder reads the lesson's four sentences."""
    model, tokenizer = encoder
    caught = []
    hooks = [
        block.intermediate.dense.register_forward_hook(lambda module, inputs, output: caught.append(output))
        for block in model.encoder.layer
    ]
    batch = tokenizer(load_sentences()[:4], padding=True, return_tensors="pt")
    with torch.inference_mode():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return [output[batch["attention_mask"].bool()].clone() for output in caught]


def ratio(tensor, bits, symmetric):
    return sqnr(tensor, fake_quantize(tensor, Scheme(bits, symmetric=symmetric, axis=None)))


# ---------------------------------------------------------------- the course's matrix and names


def test_the_courses_names_give_the_courses_figures():
    scale = helper.get_q_scale_symmetric(T)
    quantized, same_scale = helper.linear_q_symmetric(T)
    assert type(scale) is float and scale == same_scale == pytest.approx(5.7370, abs=5e-5)
    assert quantized.dtype == torch.int8
    assert quantized.tolist() == [[33, -2, 127], [16, 52, -32], [0, 119, 43]]
    assert quantization_error(T, helper.linear_dequantization(quantized, scale, 0)) == pytest.approx(2.5092, abs=5e-5)


def test_a_dtype_that_is_not_served_is_refused_and_not_forgotten():
    for function in (helper.get_q_scale_symmetric, helper.linear_q_symmetric):
        for dtype in (torch.int16, torch.int32, torch.uint8, torch.float32):
            with pytest.raises(ValueError, match=str(dtype)):
                function(T, dtype=dtype)


def test_pytorchs_observers_put_the_largest_magnitude_half_a_step_beyond_qmax():
    from torch.ao.quantization import MinMaxObserver

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
        observer(T)
        scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(728.6 / 127.5) and zero_point.item() == 0


# ---------------------------------------------------------------- the stored activation


def test_the_stored_activation_is_the_encoders_own(activation, before_gelu):
    assert activation.shape == (42, 1536) and activation.dtype == torch.float32
    assert torch.allclose(torch.nn.functional.gelu(before_gelu[5]), activation, atol=1e-4)
    assert (DATA / "activations.safetensors").stat().st_size <= 300_000


def test_the_activation_is_skewed_and_the_weight_is_centred(weight, activation):
    assert activation.min() > -0.1701 and activation.max() > 2.7
    assert 0.7 < activation.lt(0).float().mean() < 0.75
    assert abs(weight.lt(0).float().mean() - 0.5) < 0.01
    zero_points = [choose_qparams(x, Scheme(symmetric=False, axis=None))[1].item() for x in (weight, activation)]
    assert zero_points == [10, -113]


# ---------------------------------------------------------------- the modes on real numbers


@pytest.mark.parametrize(
    ("which", "bits", "codes", "decibels"),
    [
        ("weight", 8, (181, 192), (34.7, 35.5)),
        ("weight", 4, (13, 15), (9.5, 10.8)),
        ("weight", 3, (7, 8), (2.8, 4.4)),
        ("weight", 2, (3, 4), (0.1, 0.5)),
        ("activation", 8, (115, 198), (31.9, 37.4)),
        ("activation", 4, (8, 16), (5.6, 13.0)),
        ("activation", 3, (4, 8), (3.3, 5.5)),
        ("activation", 2, (2, 4), (0.3, 3.1)),
    ],
)
def test_codes_in_use_and_sqnr_of_both_modes(which, bits, codes, decibels, request):
    tensor = request.getfixturevalue(which)
    for symmetric, used, expected in zip((True, False), codes, decibels, strict=True):
        scale, zero_point = choose_qparams(tensor, Scheme(bits, symmetric=symmetric, axis=None))
        assert quantize(tensor, scale, zero_point, bits).unique().numel() == used
        assert ratio(tensor, bits, symmetric) == pytest.approx(expected, abs=0.05)


def test_24_decibels_take_6_bits_in_one_mode_and_7_in_the_other(activation):
    fewest = [next(b for b in range(2, 9) if ratio(activation, b, symmetric) >= 24) for symmetric in (False, True)]
    assert fewest == [6, 7]


def test_four_symmetric_bits_are_worth_three_on_the_activation(activation):
    assert ratio(activation, 4, True) == pytest.approx(ratio(activation, 3, False), abs=0.2)


def test_after_relu_asymmetric_mode_is_one_bit_ahead_in_every_block(before_gelu):
    for numbers in before_gelu:
        rectified = numbers.relu()
        (symmetric, _), (scale, zero_point) = (choose_qparams(rectified, Scheme(8, s, None)) for s in (True, False))
        assert zero_point.item() == -128
        assert (symmetric / scale).item() == pytest.approx(255 / 127)
        assert ratio(rectified, 8, False) - ratio(rectified, 8, True) == pytest.approx(6.05, abs=0.06)


def test_after_gelu_it_gains_4_to_8_decibels_and_no_weight_gains_one(encoder, before_gelu):
    for block, numbers in zip(encoder[0].encoder.layer, before_gelu, strict=True):
        query = block.attention.self.query.weight.detach()
        gelu = torch.nn.functional.gelu(numbers)
        assert 4 < ratio(gelu, 8, False) - ratio(gelu, 8, True) < 8
        assert 0 < ratio(query, 8, False) - ratio(query, 8, True) < 1


# ---------------------------------------------------------------- the full range and negative scales


@given(st.integers(2, 8), st.floats(1e-30, 1e30), st.sampled_from([-1, 1]))
def test_the_value_of_the_largest_magnitude_lands_on_qmin_and_comes_back(bits, largest, sign):
    far = torch.tensor(sign * largest, dtype=torch.float32)
    block = torch.stack([far, -far * 0.9, far * 0.0])
    scale, zero_point = full_range_qparams(block.min(), block.max(), bits)
    values = quantize(block, scale, zero_point, bits)
    qmin, qmax = quant_range(bits)
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int8 and zero_point.shape == ()
    assert scale.sign() == -sign
    assert values[0] == qmin and values[1] > 0 and values[2] == 0
    assert values.max() <= qmax
    torch.testing.assert_close(dequantize(values, scale, zero_point)[0], far)


def test_each_block_gets_the_sign_of_its_own_largest_value_and_zeros_get_scale_1():
    low, high = torch.tensor([[-3.0], [-1.0], [0.0], [-2.0]]), torch.tensor([[1.0], [3.0], [0.0], [2.0]])
    scale, zero_point = full_range_qparams(low, high, bits=2)
    assert scale.tolist() == [[1.5], [-1.5], [1.0], [1.0]]
    values = quantize(torch.cat([low, high], 1), scale, zero_point, bits=2)
    assert values.tolist() == [[-2, 1], [1, -2], [0, 0], [-2, 1]]
    assert quantize(torch.zeros(1, 4), *full_range_qparams(torch.zeros(1, 1), torch.zeros(1, 1))).tolist() == [[0] * 4]


def test_scales_too_small_for_float32_become_1_whatever_their_sign():
    tiny = torch.tensor([-1e-42, 1e-42, -1e-30, 1e-30])
    scale, _ = full_range_qparams(tiny.clamp(max=0), tiny.clamp(min=0))
    assert scale[:2].tolist() == [1.0, 1.0]
    assert scale[2] > 0 > scale[3]


def test_a_negative_scale_of_each_group_broadcasts_like_any_other():
    tensor = torch.linspace(-1, 1, 96).reshape(2, 48) ** 3
    groups = tensor.reshape(2, 4, 12)
    scale, zero_point = full_range_qparams(groups.amin(-1), groups.amax(-1), bits=3)
    assert (scale < 0).any() and (scale > 0).any()
    back = dequantize(quantize(tensor, scale, zero_point, 3), scale, zero_point)
    apart = dequantize(quantize(groups, scale[..., None], 0, 3), scale[..., None], 0)
    assert torch.equal(back.reshape(2, 4, 12), apart)


def errors(blocks, bits):
    """The mean squared error of each row in the three modes."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    choices = (
        symmetric_qparams(torch.maximum(-low, high), bits),
        full_range_qparams(low, high, bits),
        asymmetric_qparams(low, high, bits),
    )
    back = (dequantize(quantize(blocks, s, z, bits), s, z) for s, z in choices)
    return [(b - blocks).double().square().mean(1) for b in back]


@pytest.mark.parametrize(
    ("bits", "left", "worse"), [(8, 0.98, 2197), (4, 0.78, 721), (3, 0.59, 105), (2, 0.31, 1)], ids=str
)
def test_the_trick_gains_the_more_the_fewer_the_bits(weight, bits, left, worse):
    symmetric, full, _ = errors(weight.reshape(-1, 32), bits)
    assert (full.mean() / symmetric.mean()).item() == pytest.approx(left, abs=0.005)
    assert (full > symmetric).sum().item() == pytest.approx(worse, abs=2)


def test_at_2_bits_the_trick_beats_asymmetric_mode_and_at_4_it_does_not(weight):
    _, full, asymmetric = errors(weight.reshape(-1, 32), 2)
    assert full.mean() < 0.85 * asymmetric.mean()
    _, full, asymmetric = errors(weight.reshape(-1, 32), 4)
    assert full.mean() > 1.1 * asymmetric.mean()


def test_with_one_scale_for_the_matrix_the_trick_gains_1_decibel_at_the_most(encoder, weight):
    wide = encoder[0].encoder.layer[0].intermediate.dense.weight.detach()
    for matrix, most in ((weight, 1.0), (wide, 0.02)):
        symmetric, full, _ = errors(matrix.reshape(1, -1), 2)
        assert 0 < 10 * torch.log10(symmetric / full).item() < most


def test_the_trick_loses_on_a_block_with_large_numbers_on_both_sides():
    symmetric, full, _ = errors(torch.tensor([[1.0, -0.95, 0.05, -0.9, 0.92, -0.02]]), 2)
    assert full > 10 * symmetric


# ---------------------------------------------------------------- the grid


def test_a_ruler_with_a_negative_scale_is_the_mirror_of_the_positive_one():
    numbers = torch.tensor([-0.16, 0.05, 0.242])
    negative = repr(figures.rulers(numbers, {"r": (-0.121, 0, 2)}))
    positive = repr(figures.rulers(-numbers, {"r": (0.121, 0, 2)}))
    assert "4 marks from -0.121 to 0.242, 0.121 apart; 0.0 is the integer 0; 0 of 3 numbers clipped" in negative
    assert "4 marks from -0.242 to 0.121, 0.121 apart; 0.0 is the integer 0; 0 of 3 numbers clipped" in positive


def test_the_caption_of_a_grid_counts_codes_and_errors():
    numbers = torch.tensor([-1.0, 0.0, 0.26, 3.0])
    text = repr(figures.grid_over_histogram(numbers, torch.tensor(0.5), torch.tensor(0), 3, "four numbers"))
    assert text.startswith(
        "four numbers: 4 numbers from -1 to 3 at 3 bits. Scale 0.5, zero point 0; 4 of 8 codes used;"
    )
    error = (0.24**2 + 1.5**2) / 4
    assert f"mean squared error {error:.4g}, SQNR" in text
    assert text.endswith("Clipped: 1.")


@pytest.mark.parametrize("tensor", [torch.zeros(5), torch.full((2, 3), 7.0), torch.tensor([-3.0])], ids=repr)
def test_a_grid_can_be_laid_over_anything(tensor):
    for bits, mode in itertools.product((2, 5, 8), ("symmetric", "asymmetric", "full range")):
        grid = figures.Grid(tensor, *figures.mode_qparams(tensor, bits, mode), bits, "constant")
        assert "nan" not in figures.grid_svg(grid) and "1 of" in grid.text
