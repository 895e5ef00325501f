"""What lesson 3 says in prose, and its figures."""

import pytest
import torch

from course.figures import lesson_03 as figures
from course.models import load_encoder
from qlib import dequantize, quantize
from qlib.report import quantization_error
from tests.matrices import T


def test_the_courses_scale_and_zero_point_give_the_courses_integers_and_error():
    q = quantize(T, 3.5, -70)
    assert q.tolist() == [[-15, -74, 127], [-44, 14, -123], [-70, 126, 0]]
    assert quantization_error(T, dequantize(q, 3.5, -70)) == pytest.approx(170.8753, abs=5e-5)


def test_eight_elements_keep_to_half_a_step_and_the_ninth_makes_nearly_all_of_the_error():
    error = dequantize(quantize(T, 3.5, -70), 3.5, -70) - T
    assert (error.abs() <= 1.75).sum() == 8
    assert error[0, 2].item() == pytest.approx(-39.1, abs=0.01)
    assert error[0, 2].square() / error.square().sum() > 0.99


def test_int8_wraps_around_in_silence():
    assert torch.tensor(138).to(torch.int8).item() == -118
    assert (torch.tensor(127, dtype=torch.int8) - torch.tensor(-70, dtype=torch.int8)).item() == -59


def test_the_best_of_the_scales_is_the_smallest_that_clips_nothing():
    errors, clipped = {}, {}
    for scale in (2.0, 3.0, 3.5, 3.7, 4.0, 5.0, 8.0):
        back = dequantize(quantize(T, scale, -70), scale, -70)
        errors[scale], clipped[scale] = quantization_error(T, back), ((back - T).abs() > scale / 2).sum().item()
    assert min(errors, key=errors.get) == min(s for s in clipped if not clipped[s]) == 3.7


def test_the_stairs_can_be_counted_and_the_caption_follows_them():
    assert "8 integers from -4 to 3" in figures.staircase(scale=0.5, zero_point=1, bits=3).caption
    assert "no error exceeds 0.25" in figures.staircase(scale=0.5, zero_point=1, bits=3).caption
    assert "no error exceeds 0.5" in figures.staircase(scale=1.0, zero_point=0, bits=2).caption


def test_on_a_tie_torch_rounds_to_the_even_neighbour():
    assert torch.round(torch.tensor([0.5, 1.5, 2.5, 3.5])).tolist() == [0, 2, 2, 4]


def test_a_scale_of_0_006_clips_one_weight_of_the_real_matrix_and_0_3_leaves_six_integers():
    weight = load_encoder()[0].encoder.layer[0].attention.self.query.weight.detach()
    fine = quantize(weight, 0.006, 0)
    assert ((dequantize(fine, 0.006, 0) - weight).abs() > 0.003001).sum() == 1
    assert quantize(weight, 0.3, 0).unique().numel() == 6
    assert weight.numel() == 147456
