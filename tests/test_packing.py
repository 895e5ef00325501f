"""Packing puts small integers side by side, low bits first, and unpacking reads them back; other layouts likewise."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlib import pack, unpack
from qlib.export import LAYOUTS, pack_words, unpack_words
from qlib.packing import pack_loop, unpack_loop
from tests.strategies import examples

BITS = st.integers(1, 8)


@st.composite
def packable(draw, min_dims=1, max_dims=4):
    """(bits, values): uint8 values that fit in the bits, of any shape, rows of length 0 included."""
    bits = draw(BITS)
    shape = draw(arrays.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=0, max_side=19))
    shape = (*(min(side, 3) for side in shape[:-1]), shape[-1])
    values = draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    return bits, torch.from_numpy(values)


def packed_by_big_integer(values, bits):
    """The independent reference: one Python integer of any length, written out as bytes."""
    number = sum(value << (place * bits) for place, value in enumerate(values))
    return list(number.to_bytes((len(values) * bits + 7) // 8, "little"))


# ---------------------------------------------------------------- the figures of lessons 14 to 16


def test_the_courses_four_values_are_the_byte_177():
    packed = pack(torch.tensor([1, 0, 3, 2], dtype=torch.uint8), 2)
    assert packed.tolist() == [0b10_11_00_01] == [177]
    assert packed.dtype == torch.uint8


def test_the_courses_eight_values_are_the_bytes_177_and_255():
    values = [1, 0, 3, 2, 3, 3, 3, 3]
    assert pack(torch.tensor(values), 2).tolist() == [177, 255]
    assert unpack(torch.tensor([177, 255], dtype=torch.uint8), 2).tolist() == values


def test_at_3_bits_a_value_goes_on_in_the_next_byte():
    assert pack(torch.tensor([0, 0, 0b111]), 3).tolist() == [0b11_000_000, 0b1]


def test_lists_are_taken_too():
    assert pack([1, 0, 3, 2], 2).tolist() == [177]
    assert unpack([177], 2).tolist() == [1, 0, 3, 2]


# ---------------------------------------------------------------- what holds of all values


@given(packable())
def test_unpack_gives_back_what_was_packed(drawn):
    bits, values = drawn
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*values.shape[:-1], -(-bits * values.shape[-1] // 8))
    came_back = unpack(packed, bits, values.shape[-1])
    assert came_back.dtype == torch.uint8
    assert torch.equal(came_back, values)


@given(packable())
def test_without_a_count_unpack_gives_what_was_packed_and_zeros_after_it(drawn):
    bits, values = drawn
    came_back = unpack(pack(values, bits), bits)
    count = values.shape[-1]
    assert came_back.shape[-1] - count < 8 / bits
    assert torch.equal(came_back[..., :count], values)
    assert (came_back[..., count:] == 0).all()


@given(packable(max_dims=1))
def test_pack_agrees_with_a_big_integer(drawn):
    bits, values = drawn
    assert pack(values, bits).tolist() == packed_by_big_integer(values.tolist(), bits)


@given(packable(min_dims=2, max_dims=2))
def test_each_row_is_packed_on_its_own(drawn):
    bits, rows = drawn
    for row, packed in zip(rows, pack(rows, bits), strict=True):
        assert packed.tolist() == packed_by_big_integer(row.tolist(), bits)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 30)), elements=st.integers(0, 1)))
def test_at_1_bit_pack_agrees_with_numpy(values):
    assert np.array_equal(pack(torch.from_numpy(values), 1).numpy(), np.packbits(values, axis=-1, bitorder="little"))


@given(BITS)
def test_every_value_survives_beside_every_other(bits):
    every = torch.arange(2**bits, dtype=torch.int16)
    pairs = torch.cartesian_prod(every, every)[:: max(1, 4 ** (bits - 6))]
    assert torch.equal(unpack(pack(pairs, bits), bits, 2).to(torch.int16), pairs)


@given(BITS, st.sampled_from([(0,), (3, 0), (0, 5), (2, 0, 4)]))
def test_what_is_empty_packs_to_what_is_empty(bits, shape):
    packed = pack(torch.zeros(shape, dtype=torch.uint8), bits)
    assert packed.shape == (*shape[:-1], -(-bits * shape[-1] // 8))
    assert unpack(packed, bits, shape[-1]).shape == shape


def test_any_integer_dtype_is_packed_alike():
    values = torch.tensor([[5, 7, 0, 1, 2, 6, 3, 4, 5]])
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(pack(values.to(dtype), 3), pack(values, 3)), dtype


def test_only_the_low_bits_of_a_value_are_kept_so_that_it_spoils_no_neighbour():
    assert pack(torch.tensor([0b101, -1, 0b100, 2]), 2).tolist() == [0b10_00_11_01]


def test_columns_of_a_larger_matrix_are_packed_as_they_are_seen():
    matrix = torch.arange(40, dtype=torch.uint8).reshape(8, 5) % 4
    assert torch.equal(pack(matrix.T, 2), pack(matrix.T.contiguous(), 2))
    assert torch.equal(unpack(pack(matrix, 2).T, 2), unpack(pack(matrix, 2).T.contiguous(), 2))


def test_the_values_are_left_as_they_were():
    values = torch.tensor([1, 0, 3, 2, 3], dtype=torch.uint8)
    packed = pack(values, 2)
    kept = values.clone(), packed.clone()
    unpack(packed, 2)
    assert torch.equal(values, kept[0]) and torch.equal(packed, kept[1])


@examples((1, 2, 1), (1, 3, 1), (0, 8, 1), (3, 3, 1))
@given(st.integers(0, 9), BITS, st.integers(1, 9))
def test_more_values_than_the_bytes_hold_are_refused(octets, bits, too_many):
    held = octets * 8 // bits
    count = held + too_many
    with pytest.raises(ValueError, match=f"{octets} bytes hold {held} values of {bits} bits, not {count}"):
        unpack(torch.zeros(octets, dtype=torch.uint8), bits, count)


# ---------------------------------------------------------------- the loops, and single fields


@given(packable(max_dims=1))
def test_the_loops_give_what_the_vectorised_functions_give(drawn):
    bits, values = drawn
    packed = pack_loop(values, bits)
    assert packed.dtype == torch.uint8 and torch.equal(packed, pack(values, bits))
    came_back = unpack_loop(packed, bits, len(values))
    assert came_back.dtype == torch.uint8 and torch.equal(came_back, values)


def test_the_loop_keeps_the_low_bits_of_a_value_alone():
    assert pack_loop(torch.tensor([0b101, -1, 0b100, 2]), 2).tolist() == [0b10_00_11_01]


def test_at_3_bits_eight_values_are_24_bits():
    values = torch.arange(8, dtype=torch.uint8)
    assert pack_loop(values, 3).tolist() == pack(values, 3).tolist() == [0b10_001_000, 0b1_100_011_0, 0b111_110_10]


# ---------------------------------------------------------------- the layouts of other systems


def words_by_big_integer(values, bits):
    """The independent reference: one Python integer of any length, written out as words of 32 bits."""
    octets = bytes(packed_by_big_integer(values, bits))
    return np.frombuffer(octets.ljust(-(-len(octets) // 4) * 4, b"\0"), dtype="<i4").tolist()


@given(packable(min_dims=2, max_dims=2))
def test_words_are_those_of_a_big_integer(drawn):
    bits, rows = drawn
    packed = pack_words(rows, bits)
    assert packed.dtype == torch.int32 and packed.shape == (len(rows), -(-bits * rows.shape[1] // 32))
    for row, words in zip(rows, packed, strict=True):
        assert words.tolist() == words_by_big_integer(row.tolist(), bits)


@given(packable(min_dims=2, max_dims=3))
def test_words_are_those_of_compressed_tensors(drawn):
    bits, rows = drawn
    theirs = (rows.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)  # it counts from the smallest integer
    if rows.numel():
        packed = pack_words(rows, bits)
        assert torch.equal(packed, pack_to_int32(theirs, bits))
        assert torch.equal(unpack_from_int32(packed, bits, rows.shape), theirs)


@given(packable())
def test_what_is_in_words_comes_back(drawn):
    bits, values = drawn
    assert torch.equal(unpack_words(pack_words(values, bits), bits, values.shape[-1]), values)


def test_words_may_lie_in_memory_in_any_way():
    values = torch.arange(64, dtype=torch.uint8).reshape(8, 8) % 16
    assert torch.equal(pack_words(values.T, 4), pack_words(values.T.contiguous(), 4))
    column = torch.arange(6, dtype=torch.int32).reshape(2, 3)[:, 1:2]
    assert torch.equal(unpack_words(column, 8), torch.tensor([[1, 0, 0, 0], [4, 0, 0, 0]]))


@st.composite
def matrices(draw, rows, columns, widths):
    """(bits, codes): codes of a matrix whose sizes are multiples of `rows` and `columns`."""
    bits = draw(st.sampled_from(widths))
    shape = (rows * draw(st.integers(1, 4)), columns * draw(st.integers(1, 4)))
    return bits, torch.from_numpy(draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1))))


# What a layout asks of (outputs, inputs), and its widths.
FITTING = {
    "low bits first": (1, 1, range(1, 9)),
    "compressed-tensors": (1, 1, range(1, 9)),
    "gptq": (1, 32, [2, 3, 4, 8]),
    "awq": (8, 1, [4]),
}


@given(st.sampled_from(list(LAYOUTS)), st.data())
def test_every_layout_gives_back_what_it_packed(name, data):
    bits, codes = data.draw(matrices(*FITTING[name]))
    packed = LAYOUTS[name].pack(codes, bits)
    assert packed.dtype == (torch.uint8 if name == "low bits first" else torch.int32)
    came_back = LAYOUTS[name].unpack(packed, bits, codes.shape[1])
    assert came_back.dtype == torch.uint8 and torch.equal(came_back, codes)


@given(st.sampled_from(list(LAYOUTS)), st.sampled_from(list(LAYOUTS)))
def test_from_each_layout_to_each_other_at_4_bits(source, target):
    codes = (torch.arange(16 * 64).reshape(16, 64) * 7 % 16).to(torch.uint8)
    there = LAYOUTS[target].pack(LAYOUTS[source].unpack(LAYOUTS[source].pack(codes, 4), 4, 64), 4)
    assert torch.equal(there, LAYOUTS[target].pack(codes, 4))


def test_the_first_word_of_each_layout_by_hand():
    """Weight (output, input) has the code output + 2 * input, so that each word says which weights are in it."""
    codes = torch.arange(8)[:, None] + 2 * torch.arange(32)
    first = {name: layout.pack(codes, 4).flatten()[:4] for name, layout in LAYOUTS.items()}
    assert [f"{octet:02x}" for octet in first["low bits first"].tolist()] == ["20", "64", "a8", "ec"]
    # Eight inputs of output 0, the first in the lowest four bits; GPTQ's next word is that of output 1.
    words = {name: [f"{word & 0xFFFFFFFF:08x}" for word in first[name].tolist()] for name in LAYOUTS}
    assert words["compressed-tensors"][:2] == ["eca86420", "eca86420"]
    assert words["gptq"][:2] == ["eca86420", "fdb97531"]
    # Eight outputs of input 0: the even ones, then the odd ones. The next word is that of input 1.
    assert words["awq"][:2] == ["75316420", "97538642"]


@pytest.mark.parametrize(
    ("name", "shape", "bits", "why"),
    [
        ("gptq", (4, 31), 4, "31 is no multiple of 32"),
        ("gptq", (4, 32), 5, "2, 3, 4 or 8 bits, not 5"),
        ("awq", (12, 4), 4, "12 is no multiple of 8"),
        ("awq", (8, 4), 8, "4 bits, not 8"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(name, shape, bits, why):
    with pytest.raises(ValueError, match=why):
        LAYOUTS[name].pack(torch.zeros(shape, dtype=torch.uint8), bits)
