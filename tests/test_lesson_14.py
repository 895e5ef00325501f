"""Lesson 14: what it says of torch.int2, of bits and of layouts; get_field and put_field; pictures of bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.figures import lesson_14 as figures
from course.figures.lesson_14 import Bits
from qlib import Scheme, pack, quantize_tensor, unpack
from qlib.export import LAYOUTS
from qlib.packing import get_field, put_field
from qlib.report import in_units, weight_bytes
from tests.test_plot import assert_draws

BYTE = st.integers(0, 255)


@st.composite
def fields(draw):
    """(word, offset, bits) of a field inside a word of 32 bits."""
    offset = draw(st.integers(0, 31))
    return draw(st.integers(0, 2**32 - 1)), offset, draw(st.integers(1, min(8, 32 - offset)))


# ---------------------------------------------------------------- torch.int2 and what it costs

SMALL_DTYPES = [getattr(torch, f"{sign}int{bits}") for sign in ("u", "") for bits in range(1, 8)]


@given(st.sampled_from(SMALL_DTYPES))
def test_pytorchs_types_of_1_to_7_bits_take_a_byte_and_do_nothing(dtype):
    four = torch.tensor([1, 0, 1, 1], dtype=torch.uint8).view(dtype)
    assert torch.empty(4, dtype=dtype).nbytes == four.nbytes == 4
    for attempt in (
        lambda: torch.tensor([1, 0], dtype=dtype),
        lambda: torch.ones(4, dtype=torch.uint8).to(dtype),
        lambda: four + four,
        lambda: four & four,
        lambda: four.float(),
        lambda: four[2].item(),
        lambda: repr(four),
    ):
        with pytest.raises(RuntimeError):
            attempt()


def test_the_lessons_four_weights_have_the_courses_codes():
    row = torch.tensor([[-0.2, -0.4, 0.2, 0.0]])
    qtensor = quantize_tensor(row, Scheme(bits=2, symmetric=False))
    assert (qtensor.values + 2).tolist() == [[1, 0, 3, 2]]
    assert qtensor.values.nbytes == 4
    assert qtensor.packed.tolist() == [[177]]


def test_seventy_billion_weights_packed_at_2_bits_miss_a_t4_and_fit_a_4090():
    assert in_units(weight_bytes(70 * 10**9, 2)) == "17.5 GB"
    assert 2 * 24e9 < 70e9 <= 3 * 24e9, "a byte each, they need three"


# ---------------------------------------------------------------- operations on bits


def test_the_traps_of_signs_and_lengths():
    byte = torch.tensor([177], dtype=torch.uint8)
    assert (~byte).item() == 78 and ~177 == -178
    assert (byte << 2).item() == 196 and 177 << 2 == 708
    assert (byte.view(torch.int8) >> 4).item() == -5 and (byte >> 4).item() == 11
    # Quiz, question 3: a 2 in the highest bits, read through int8 without a mask.
    assert (torch.tensor([0b10_00_00_00], dtype=torch.uint8).view(torch.int8) >> 6).item() == -2


@given(fields())
def test_a_field_is_what_arithmetic_says(drawn):
    word, offset, bits = drawn
    assert get_field(word, offset, bits) == word // 2**offset % 2**bits
    signed = torch.tensor([word]).to(torch.int32)
    assert get_field(signed, offset, bits).item() == word // 2**offset % 2**bits


@given(fields(), st.integers(-300, 300))
def test_what_was_put_in_is_read_again_and_nothing_beside_it_changes(drawn, value):
    word, offset, bits = drawn
    changed = put_field(word, value, offset, bits)
    assert get_field(changed, offset, bits) == value % 2**bits
    assert get_field(changed, 0, offset) == get_field(word, 0, offset)
    assert changed >> (offset + bits) == word >> (offset + bits)
    signed = torch.tensor([word]).to(torch.int32)
    assert put_field(signed, value, offset, bits).item() == torch.tensor([changed]).to(torch.int32).item()


def test_putting_four_codes_one_after_the_other_packs_a_byte():
    byte = 0
    for i, code in enumerate([1, 0, 3, 2]):
        byte = put_field(byte, code, 2 * i, 2)
    assert byte == 177 == pack([1, 0, 3, 2], 2).item()
    assert [get_field(byte, offset, 2) for offset in (0, 2, 4, 6)] == [1, 0, 3, 2]


def test_an_or_alone_does_not_clear_a_field():
    assert get_field(177 | (2 << 4), 4, 2) == 3


# ---------------------------------------------------------------- Bits: numbers whose bits know where they belong


@given(BYTE, BYTE, st.integers(0, 8))
def test_bits_calculate_as_a_uint8_does(a, b, amount):
    one, other = torch.tensor([a], dtype=torch.uint8), torch.tensor([b], dtype=torch.uint8)
    assert (Bits(a) & Bits(b)).number == (Bits(a) & b).number == (one & other).item()
    assert (Bits(a) | Bits(b)).number == (one | other).item()
    assert (Bits(a) ^ Bits(b)).number == (one ^ other).item()
    assert (~Bits(a)).number == (~one).item()
    assert (Bits(a) << amount).number == (one.long() << amount).item() % 256
    assert (Bits(a) >> amount).number == (one.long() >> amount).item()


def test_a_bit_keeps_its_owner_wherever_it_goes():
    byte = Bits.packed(177, 2)
    assert byte.owners == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (byte >> 4).owners == (2, 2, 3, 3, None, None, None, None)
    assert (byte << 2).owners == (None, None, 0, 0, 1, 1, 2, 2)
    assert ((byte >> 4) & 3).owners == (2, 2, *[None] * 6)
    assert (Bits(0) | (Bits.value(3, 2, index=5) << 4)).owners == (*[None] * 4, 5, 5, None, None)
    assert (Bits.value(0b01, 2, 0) | Bits.value(0b10, 2, 1)).owners[:2] == (0, 1), "a 1 wins over a 0"


@pytest.mark.parametrize(("number", "width", "digits"), [(177, 8, "1011 0001"), (5, 3, "101"), (33, 6, "10 0001")])
def test_digits_stand_in_fours_from_the_right(number, width, digits):
    assert Bits(number, (None,) * width, width).digits == digits


# ---------------------------------------------------------------- pictures


def boxes(axis):
    """{(column, row): opacity} of the boxes on an axis."""
    found = {}
    for patch in axis.patches:
        found[round(patch.get_x()), round(patch.get_y())] = patch.get_facecolor()[3]
    return found


def test_rows_of_bits_are_drawn_highest_first_and_described(tmp_path):
    picture = figures.bit_rows({"a": Bits.packed(177, 2), "b": 3}, "Two bytes")
    assert picture.caption == "Two bytes. a: 1011 0001 = 177; b: 0000 0011 = 3."
    (axis,) = picture.figure.axes
    drawn = boxes(axis)
    assert len(drawn) == 16
    strong = [column for column in range(8) if drawn[column, 0] > 0.6]
    assert strong == [0, 2, 3, 7], "the ones of 10110001, from the left"
    assert_draws(picture, tmp_path / "bits.png")


# ---------------------------------------------------------------- layouts

WORDS = {
    "low bits first": [(0, i) for i in range(8)],
    "compressed-tensors": [(0, i) for i in range(8)],
    "gptq": [(0, i) for i in range(8)],
    "awq": [(output, 0) for output in (0, 2, 4, 6, 1, 3, 5, 7)],
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_the_weights_that_the_lesson_draws_in_a_word_are_those_that_the_layout_puts_there(name):
    for nibble, place in enumerate(WORDS[name]):
        codes = torch.zeros(8, 32, dtype=torch.uint8)
        codes[place] = 15
        word = LAYOUTS[name].pack(codes, 4).flatten().view(torch.int32)[0].item() & 0xFFFF_FFFF
        assert word == 15 << (4 * nibble)


def test_the_lessons_table_of_layouts():
    codes = (torch.arange(384)[:, None] + torch.arange(1536)) % 16
    packed = {name: layout.pack(codes, 4) for name, layout in LAYOUTS.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in packed.items()}
    assert shapes == {
        "low bits first": (384, 768),
        "compressed-tensors": (384, 192),
        "gptq": (192, 384),
        "awq": (1536, 48),
    }
    assert {tensor.nbytes for tensor in packed.values()} == {294912}
    assert torch.equal(packed["low bits first"].view(torch.int32), packed["compressed-tensors"])
    assert unpack(packed["awq"][0, :1].view(torch.uint8), 4).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_the_picture_of_layouts_colours_the_weights_it_names(tmp_path):
    picture = figures.word_layouts({"rows": WORDS["low bits first"], "AWQ": WORDS["awq"]})
    assert "rows: 0,7 0,6 0,5 0,4 0,3 0,2 0,1 0,0; AWQ: 7,0 5,0 3,0 1,0 6,0 4,0 2,0 0,0." in picture.caption
    corner = picture.figure.axes[2]
    image = corner.images[0].get_array()
    coloured = (image[..., 0] != image[..., 2]).nonzero()
    assert coloured[0].tolist() == list(range(8)) and coloured[1].tolist() == [0] * 8
    assert_draws(picture, tmp_path / "layouts.png")
