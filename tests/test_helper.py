"""The video course's names do on its own matrix what the course shows, and what is right where the course is not."""

import pytest
import torch

import course.helper as helper
from qlib import Scheme, choose_qparams
from tests.matrices import T


def test_lesson_3_runs_under_the_courses_names():
    scale, zero_point = 3.5, -70
    quantized = helper.linear_q_with_scale_and_zero_point(T, scale, zero_point)
    assert quantized.dtype == torch.int8
    assert quantized.tolist() == [[-15, -74, 127], [-44, 14, -123], [-70, 126, 0]]
    dequantized = helper.linear_dequantization(quantized, scale, zero_point)
    error = helper.quantization_error(T, dequantized)
    assert isinstance(error, torch.Tensor)
    assert error.item() == pytest.approx(170.8753, abs=5e-5)


def test_lesson_4_runs_under_the_courses_names():
    scale, zero_point = helper.get_q_scale_and_zero_point(T)
    assert (type(scale), type(zero_point)) == (float, int)
    assert (round(scale, 4), zero_point) == (3.5788, -77)
    quantized, new_scale, new_zero_point = helper.linear_quantization(T)
    assert (new_scale, new_zero_point) == (scale, zero_point)
    dequantized = helper.linear_dequantization(quantized, new_scale, new_zero_point)
    assert helper.quantization_error(T, dequantized).item() == pytest.approx(1.5730, abs=5e-5)


def test_dtype_may_be_given_as_the_course_does_by_name_and_by_place():
    by_name = helper.linear_q_with_scale_and_zero_point(T, 3.5, -70, dtype=torch.int8)
    by_place = helper.linear_q_with_scale_and_zero_point(T, 3.5, -70, torch.int8)
    assert torch.equal(by_name, by_place)
    assert helper.get_q_scale_and_zero_point(T, torch.int8) == helper.get_q_scale_and_zero_point(T, dtype=torch.int8)


def test_any_dtype_but_int8_is_refused():
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.float16, "int8"):
        for function, arguments in (
            (helper.linear_q_with_scale_and_zero_point, (T, 3.5, -70)),
            (helper.get_q_scale_and_zero_point, (T,)),
            (helper.linear_quantization, (T,)),
        ):
            with pytest.raises(ValueError, match=rf"the course quantizes to torch\.int8, not {dtype}; use a Scheme"):
                function(*arguments, dtype=dtype)


def test_values_on_one_side_of_zero_come_back_where_the_courses_formula_gives_3():
    far = torch.tensor([100.0, 101.0, 102.0, 103.0])
    quantized, scale, zero_point = helper.linear_quantization(far)
    dequantized = helper.linear_dequantization(quantized, scale, zero_point)
    assert (dequantized - far).abs().max() <= 0.5001 * scale


def test_a_constant_tensor_comes_back_where_the_courses_formula_divides_by_zero():
    for value in (0.0, 5.0, -5.0):
        quantized, scale, zero_point = helper.linear_quantization(torch.full((3, 3), value))
        assert helper.linear_dequantization(quantized, scale, zero_point).unique().tolist() == pytest.approx([value])


def test_the_names_are_qlibs_own_functions_in_other_words():
    scale, zero_point = choose_qparams(T, Scheme(symmetric=False, axis=None))
    assert helper.get_q_scale_and_zero_point(T) == (scale.item(), zero_point.item())


def test_the_courses_picture_call_shows_the_picture_at_once(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    quantized, scale, zero_point = helper.linear_quantization(T)
    dequantized = helper.linear_dequantization(quantized, scale, zero_point)
    assert helper.plot_quantization_errors(T, quantized, dequantized) is None
    helper.plot_quantization_errors(T, quantized, dequantized, dtype=torch.int8, n_bits=8)
    assert len(shown) == 2
    assert shown[0].caption.startswith("A 3 x 3 matrix from -184 to 728.6; ")
