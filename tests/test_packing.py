"""Packing puts small integers side by side, low bits first, and unpacking reads them back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlib import pack, unpack

BITS = st.integers(1, 8)
EACH_WIDTH = pytest.mark.parametrize("bits", range(1, 9))


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


@EACH_WIDTH
def test_every_value_survives_beside_every_other(bits):
    every = torch.arange(2**bits, dtype=torch.int16)
    pairs = torch.cartesian_prod(every, every)[:: max(1, 4 ** (bits - 6))]
    assert torch.equal(unpack(pack(pairs, bits), bits, 2).to(torch.int16), pairs)


@EACH_WIDTH
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 4)], ids=str)
def test_what_is_empty_packs_to_what_is_empty(bits, shape):
    packed = pack(torch.zeros(shape, dtype=torch.uint8), bits)
    assert packed.shape == (*shape[:-1], -(-bits * shape[-1] // 8))
    assert unpack(packed, bits, shape[-1]).shape == shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_dtype_is_packed_alike(dtype):
    values = torch.tensor([[5, 7, 0, 1, 2, 6, 3, 4, 5]])
    assert torch.equal(pack(values.to(dtype), 3), pack(values, 3))


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


@pytest.mark.parametrize(("octets", "bits", "count"), [(1, 2, 5), (1, 3, 3), (0, 8, 1), (3, 3, 9)])
def test_more_values_than_the_bytes_hold_are_refused(octets, bits, count):
    held = octets * 8 // bits
    with pytest.raises(ValueError, match=f"{octets} bytes hold {held} values of {bits} bits, not {count}"):
        unpack(torch.zeros(octets, dtype=torch.uint8), bits, count)
