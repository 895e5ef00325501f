"""Lesson 15: the course's figures under its names, the loop and the fast way, borders, signs, and files."""

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from course import helper
from course.exercises.judge import judge
from course.exercises.lesson_15 import PACK, python_steps
from course.figures import lesson_15 as figures
from course.models import load_encoder
from qlib import Scheme, pack, quantize_tensor, unpack
from qlib.packing import from_twos_complement, pack_loop, unpack_loop
from qlib.report import weight_bytes
from tests.test_plot import assert_draws

EIGHT = torch.tensor([1, 0, 3, 2, 3, 3, 3, 3], dtype=torch.uint8)
THREES = [1, 0, 3, 2, 7, 5, 4, 6]


# ---------------------------------------------------------------- figures of the lesson


def test_the_courses_names_and_figures():
    assert helper.pack_weights(EIGHT[:4], 2).tolist() == [177]
    assert helper.pack_weights(EIGHT, 2).tolist() == [177, 255]
    assert helper.unpack_weights(torch.tensor([177, 255], dtype=torch.uint8), 2).tolist() == EIGHT.tolist()


def test_the_byte_after_each_of_the_courses_four_values():
    assert [pack([1, 0, 3, 2][:count], 2).item() for count in range(1, 5)] == [1, 1, 49, 177]


def test_eight_values_of_3_bits_are_three_bytes_and_the_first_five_two():
    assert pack(THREES, 3).tolist() == [193, 244, 210]
    assert pack(THREES[:5], 3).tolist() == [193, 116]
    assert sum(value << (3 * i) for i, value in enumerate(THREES)) == 13825217


def test_signed_values_are_written_in_two_ways_and_both_come_back():
    signed = torch.tensor([-1, -2, 1, 0], dtype=torch.int8)
    assert pack_loop(signed, 2).tolist() == [27]
    assert pack_loop(signed + 2, 2).tolist() == [177]
    assert from_twos_complement(unpack([27], 2), 2).tolist() == signed.tolist()
    assert (unpack([177], 2).to(torch.int8) - 2).tolist() == signed.tolist()


def test_a_qtensor_counts_from_the_smallest_integer():
    qtensor = quantize_tensor(torch.linspace(-1, 1, 24).reshape(2, 12), Scheme(bits=3, symmetric=False))
    assert torch.equal(qtensor.packed, pack(qtensor.values.to(torch.int16) + 4, 3))


def test_the_bytes_alone_do_not_say_how_many_values_there_are():
    five = pack_loop(EIGHT[:5], 2)
    assert unpack(five, 2).tolist() == [1, 0, 3, 2, 3, 0, 0, 0]
    assert unpack(five, 2, count=5).tolist() == [1, 0, 3, 2, 3]


def test_the_quiz():
    assert pack([3, 0, 0, 1], 2).item() == 67
    assert pack(torch.zeros(100, 10, dtype=torch.uint8), 3).numel() == 400
    assert pack([9, 0], 3).item() == 1


def test_eight_values_are_as_many_bytes_as_a_value_has_bits():
    for bits in range(1, 9):
        assert pack(torch.zeros(8), bits).numel() == bits


# ---------------------------------------------------------------- the loop is the same as the fast way


@given(st.integers(1, 8), st.lists(st.integers(-300, 300), max_size=40))
def test_the_loops_do_what_pack_and_unpack_do(bits, values):
    values = torch.tensor(values, dtype=torch.int64)
    packed = pack_loop(values, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(packed, pack(values, bits))
    assert torch.equal(unpack_loop(packed, bits, len(values)), unpack(packed, bits, len(values)))
    assert unpack_loop(packed, bits, len(values)).dtype == torch.uint8


@pytest.mark.parametrize("bits", range(1, 9))
def test_only_widths_that_do_not_divide_8_cross_a_border(bits):
    caption = figures.packed_bytes([0] * 8, bits).caption
    assert ("No value lies across a border" in caption) == (8 % bits == 0)


# ---------------------------------------------------------------- a loop over the values is told from one over places


def packs_in_one_line(values, bits):
    """A comprehension is a loop as well."""
    rows = [[value & (2**bits - 1) for value in row] for row in values.reshape(-1, values.shape[-1]).tolist()]
    return pack(torch.tensor(rows, dtype=torch.uint8).reshape(values.shape), bits)


def packs_row_by_row(values, bits):
    if values.ndim == 1:
        return pack(values, bits)
    return torch.stack([packs_row_by_row(row, bits) for row in values])


def packs_with_numpys_vectorize(values, bits):
    """NumPy's loop over a Python function is one of Python's."""
    keep = np.vectorize(lambda value: value & (2**bits - 1), otypes=[np.uint8])
    return pack(torch.from_numpy(keep(values.numpy())), bits)


@pytest.mark.parametrize("answer", [packs_in_one_line, packs_row_by_row, packs_with_numpys_vectorize])
def test_loops_of_every_kind_are_found(answer):
    assert "there is a loop over them" in judge(PACK, answer).message


def test_counting_steps_leaves_a_debugger_alone():
    import sys

    def debugger(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        assert python_steps(pack, (2, 8)) > 0
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)


# ---------------------------------------------------------------- pictures


def test_the_picture_of_packed_bytes_names_values_bytes_and_borders(tmp_path):
    assert figures.packed_bytes(THREES, 3).caption == (
        "8 values of 3 bits in 3 bytes, read from the right: values 1, 0, 3, 2, 7, 5, 4, 6; bytes 193, 244, 210. "
        "Values 2, 5 lie across a border."
    )
    short = figures.packed_bytes([1, 0, 3, 2, 3], 2)
    assert short.caption.endswith("No value lies across a border. 6 bits of the last byte are left over, zeros.")
    (axis,) = short.figure.axes
    bits = [text.get_text() for text in axis.texts if text.get_family() == ["monospace"]]
    assert "".join(reversed(bits)) == "0000001110110001"
    assert_draws(short, tmp_path / "bytes.png")


def test_the_bars_of_files_are_as_long_as_their_parts(tmp_path):
    picture = figures.file_parts(
        {"a": {"weights": 100, "header": 20}, "b": {"weights": 50, "header": 20}}, {"a": 90, "b": 50}
    )
    assert "what is not weights is header. a: 120, of which weights 100, at least 90; b: 70," in picture.caption
    (axis,) = picture.figure.axes
    assert [round(bar.get_width()) for bar in axis.patches] == [100, 20, 50, 20]
    assert_draws(picture, tmp_path / "files.png")


# ---------------------------------------------------------------- a real matrix on disk


@pytest.fixture(scope="module")
def weight():
    return load_encoder()[0].encoder.layer[0].output.dense.weight.detach()


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_packed_matrix_takes_the_least_bytes_that_its_bits_need(weight, bits, tmp_path):
    qtensor = quantize_tensor(weight, Scheme(bits=bits, symmetric=False, group_size=64))
    assert qtensor.packed.nbytes == weight.numel() * bits // 8 == weight_bytes(weight.numel(), bits)
    assert qtensor.bits_per_weight == bits + 0.625
    path = tmp_path / "weight.safetensors"
    safetensors.torch.save_file({"weights": qtensor.packed}, path)
    assert path.stat().st_size - qtensor.packed.nbytes < 300, "a header of a few hundred bytes"


def test_at_2_bits_nearly_a_quarter_of_the_file_is_scales(weight):
    qtensor = quantize_tensor(weight, Scheme(bits=2, symmetric=False, group_size=64))
    scales = qtensor.scale.nbytes + qtensor.zero_point.nbytes
    assert qtensor.scale.numel() == 9216 and scales == 5 * 9216
    assert 0.22 < scales / qtensor.nbytes < 0.25
