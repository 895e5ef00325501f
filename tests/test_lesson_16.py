"""Lesson 16: the course's figures, pack and unpack as inverses, the packed layer, the bytes it moves, the pictures."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from course import helper
from course.exercises.judge import judge
from course.exercises.lesson_16 import PACKED_LINEAR
from course.figures import lesson_16 as figures
from qlib import INT2, QLinear, Scheme, pack, unpack
from qlib.linear import packed_linear, plain_linear
from qlib.report import memory_traffic

EIGHT = [1, 0, 3, 2, 3, 3, 3, 3]


# ---------------------------------------------------------------- figures of the lesson


def test_the_courses_names_and_figures():
    packed = torch.tensor([177, 255], dtype=torch.uint8)
    assert helper.unpack_weights(packed, 2).tolist() == unpack(packed, 2).tolist() == EIGHT


def test_column_by_column_four_of_the_eight_are_wrong():
    packed = torch.tensor([177, 255], dtype=torch.uint8)
    columns = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)]).flatten()
    assert (columns != torch.tensor(EIGHT)).sum() == 4


def test_value_5_of_the_3_bit_example_lies_across_a_border():
    packed = [193, 244, 210]
    assert unpack(packed, 3).tolist() == [1, 0, 3, 2, 7, 5, 4, 6]
    assert (210 & 0b11) << 1 | 244 >> 7 == 5
    assert unpack(packed[:2], 3).tolist() == [1, 0, 3, 2, 7]


def test_the_quiz():
    assert pack(torch.zeros(30), 3).numel() == 12
    assert len(unpack(torch.zeros(12, dtype=torch.uint8), 3)) == 32


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=30))
def test_unpack_undoes_pack_and_pack_undoes_unpack_where_no_bit_is_left_over(bits, numbers):
    values = torch.tensor([number % 2**bits for number in numbers], dtype=torch.uint8)
    assert torch.equal(unpack(pack(values, bits), bits, len(values)), values)
    octets = torch.tensor(numbers, dtype=torch.uint8)
    whole = octets[: len(octets) // bits * bits]
    assert torch.equal(pack(unpack(whole, bits), bits), whole)


def test_the_tiny_layer():
    row = torch.tensor([[177, 210]], dtype=torch.uint8)
    scale, zero_point = torch.tensor([[0.5, 0.125]]), torch.tensor([[-1, 0]])
    x = torch.tensor([1.0, 2.0, -1.0, 0.5, 0.0, 2.0, -2.0, 1.0])
    assert packed_linear(x, row, scale, zero_point, 2, 4).item() == -1.875
    assert packed_linear(torch.eye(8)[2], row, scale, zero_point, 2, 4).item() == 1.0
    assert packed_linear(torch.eye(8)[7], row, scale, zero_point, 2, 4).item() == 0.125


def test_a_masked_code_left_in_its_place_is_a_power_of_four_too_large():
    for j in range(4):
        assert (177 & 3 << 2 * j) / 4**j == unpack([177], 2)[j]


# ---------------------------------------------------------------- the packed layer


@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from([(96, 32), (80, 32), (10, 4)]), st.booleans())
def test_packed_linear_is_the_plain_formula_of_qlinear(bits, sizes, bias):
    inputs, group_size = sizes
    scheme = Scheme(bits, symmetric=False, group_size=group_size)
    layer = QLinear.from_linear(torch.nn.Linear(inputs, 5, bias=bias), scheme)
    x = torch.linspace(-1, 1, 2 * inputs).reshape(2, inputs)
    mine = packed_linear(x, layer.packed, layer.scale, layer.zero_point, bits, group_size, layer.bias)
    plain = plain_linear(x, layer.qtensor, layer.bias)
    torch.testing.assert_close(mine, plain)
    with torch.no_grad():
        torch.testing.assert_close(mine, layer(x), rtol=1e-5, atol=1e-5)


def test_an_answer_that_keeps_the_unpacked_weight_on_the_function_is_told_so():
    def packed_linear_with_a_memory(x, packed, scale, zero_point, bits, group_size, bias=None):
        self = packed_linear_with_a_memory
        if not hasattr(self, "weight"):
            eye = torch.eye(x.shape[-1])
            self.weight = packed_linear(eye, packed, scale, zero_point, bits, group_size).T
        return torch.nn.functional.linear(x, self.weight, bias)

    message = judge(PACKED_LINEAR, packed_linear_with_a_memory).message
    assert "unpack at every call, and keep nothing" in message


# ---------------------------------------------------------------- bytes moved


def test_traffic_counts_what_operations_read_and_write_and_not_views():
    a, b = torch.zeros(3, 4), torch.zeros(4, 5, dtype=torch.float64)
    assert memory_traffic(lambda: a + 1) == {"read": 48, "written": 48}
    assert memory_traffic(lambda: a.T.reshape(4, 3)[1:]) == {"read": 0, "written": 0}
    assert memory_traffic(torch.mm, a.double(), b) == {"read": 96 + 160, "written": 120}
    assert memory_traffic(lambda: None) == {"read": 0, "written": 0}


def test_the_plain_formula_moves_more_than_float32_and_the_packed_bytes_are_a_tenth_of_it():
    n, group = 1024, INT2.group_size

    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, packed = meta(1, n), meta(n, n // 4, dtype=torch.uint8)
    scale, zero_point = meta(n, n // group), meta(n, n // group, dtype=torch.int8)
    float32 = sum(memory_traffic(torch.nn.functional.linear, x, meta(n, n)).values())
    plain = sum(memory_traffic(packed_linear, x, packed, scale, zero_point, 2, group).values())
    once = sum(part.nbytes for part in (packed, scale, zero_point))
    assert plain > 10 * float32
    assert 9.5 < float32 / once < 10


# ---------------------------------------------------------------- pictures


def test_the_grid_of_shifts_reads_row_by_row_as_the_values():
    picture = figures.unpack_grid([177, 255], 2)
    assert picture.caption.endswith("these are the 8 values 1, 0, 3, 2, 3, 3, 3, 3.")
    digits = [t.get_text() for t in picture.figure.axes[0].texts if t.get_family() == ["monospace"]]
    assert "".join(reversed(digits[:8])) == f"{177:08b}" and len(digits) == 2 * (8 + 8)


def test_the_row_is_drawn_from_bytes_to_the_sum():
    picture = figures.unpacked_row(
        torch.tensor([177, 210], dtype=torch.uint8),
        torch.tensor([0.5, 0.125]),
        torch.tensor([-1, 0]),
        2,
        4,
        torch.tensor([1.0, 2.0, -1.0, 0.5, 0.0, 2.0, -2.0, 1.0]),
    )
    assert "weights, s (q - z): 0, -0.5, 1, 0.5, 0, -0.25, -0.125, 0.125" in picture.caption
    assert picture.caption.endswith("Sum: -1.875.")


def test_bars_of_traffic_are_as_long_as_the_bytes():
    picture = figures.traffic_bars({"a": {"read": 1000, "written": 10}, "b": {"read": 5000, "written": 50}}, "Moved")
    assert sorted(bar.get_width() for bar in picture.figure.axes[0].patches) == [10, 50, 1000, 5000]
    assert picture.caption == "Moved. a: 1.0 kB read, 10 bytes written; b: 5.0 kB read, 50 bytes written."


def test_times_are_drawn_and_not_written_in_the_caption():
    slow, fast = (figures.speed_bars({"one": 0.2, "two": seconds}, "Race") for seconds in (0.4, 0.1))
    assert slow.caption == fast.caption and "2 ways" in slow.caption
    assert [bar.get_width() for bar in fast.figure.axes[0].patches] == [1, 2]
    assert any(text.get_text() == "0.5×, 400 ms" for text in slow.figure.axes[0].texts)
