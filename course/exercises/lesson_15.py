"""Exercises of lesson 15: packing 2-bit weights."""

import math
import sys

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property
from qlib.packing import pack, pack_loop

FOUR = torch.tensor([1, 0, 3, 2], dtype=torch.uint8)
EIGHT = torch.tensor([1, 0, 3, 2, 3, 3, 3, 3], dtype=torch.uint8)
FIVE = torch.tensor([1, 0, 3, 2, 3], dtype=torch.uint8)
LAST_BYTE_0 = torch.tensor([1, 0, 3, 2, 1, 0, 3, 2, 0], dtype=torch.uint8)
NIBBLES = torch.tensor([5, 14, 9, 3, 12, 7, 1], dtype=torch.uint8)
ONES = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)
UP_TO_255 = torch.tensor([200, 3, 129])
# 5 is 101 and -1 is all ones: at 2 bits 1 and 3 are left of them.
TOO_WIDE = torch.tensor([0, 5, 2, -1, 4, 3], dtype=torch.int64)


# ---------------------------------------------------------------- what both exercises share


def octets_of(count, bits):
    return math.ceil(count * bits / 8)


def masked(values, bits):
    return (values.long() & (2**bits - 1)).tolist()


def low_bits(value, bits):
    return value & (2**bits - 1)


def packed_by_places(values, bits, place_of, keep=low_bits):
    """Or each value into the byte and at the shift that place_of(i) gives; what lies beyond the byte is lost."""
    packed = [0] * octets_of(len(values), bits)
    for i, value in enumerate(values.tolist()):
        place, shift = place_of(i)
        packed[place] |= (keep(value, bits) << shift) & 255
    return torch.tensor(packed, dtype=torch.uint8)


def bit_matrix(values, bits):
    """The bits of values, lowest first: shape (..., count, bits)."""
    return (values.long()[..., None] >> torch.arange(bits)) & 1


def from_bits(stream, weights=tuple(2**place for place in range(8))):
    """uint8 from a stream of bits (..., n), eight a byte, zeros after the last."""
    filled = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (filled * torch.tensor(weights)).sum(-1).to(torch.uint8)


def how_packed(args, index):
    """The byte's bits, as the answer should have them."""
    octet = pack(*args)[index].item()
    return f"this byte should be {octet:08b}"


# ---------------------------------------------------------------- 15.1 pack_loop


def high_bits_first(values, bits):
    per_byte = 8 // bits
    return packed_by_places(values, bits, lambda i: (i // per_byte, 8 - bits * (i % per_byte + 1)))


def shifts_by_the_index(values, bits):
    per_byte = 8 // bits
    return packed_by_places(values, bits, lambda i: (i // per_byte, i % per_byte))


def shifts_by_eight(values, bits):
    per_byte = 8 // bits
    return packed_by_places(values, bits, lambda i: (i // per_byte, 8 * (i % per_byte)))


def never_shifts(values, bits):
    per_byte = 8 // bits
    return packed_by_places(values, bits, lambda i: (i // per_byte, 0))


def shifts_on_into_the_next_byte(values, bits):
    return packed_by_places(values, bits, lambda i: (i * bits // 8, i * bits))


def forgets_the_mask(values, bits):
    return packed_by_places(values, bits, lambda i: divmod(i * bits, 8), keep=lambda value, bits: value)


def assigns(values, bits):
    packed = [0] * octets_of(len(values), bits)
    for i, value in enumerate(masked(values, bits)):
        place, offset = divmod(i * bits, 8)
        packed[place] = value << offset
    return torch.tensor(packed, dtype=torch.uint8)


def drops_the_last_values(values, bits):
    return pack(values, bits)[: len(values) * bits // 8]


def adds_an_empty_byte(values, bits):
    packed = pack(values, bits)
    return torch.cat([packed, packed.new_zeros(len(values) * bits // 8 + 1 - len(packed))])


def drops_a_byte_of_zero(values, bits):
    packed = pack(values, bits)
    return packed[:-1] if len(packed) and packed[-1] == 0 else packed


def saturates(values, bits):
    return pack(values.long().clamp(0, 2**bits - 1), bits)


def pads_at_the_front(values, bits):
    return pack(torch.cat([values.new_zeros(-len(values) % (8 // bits)), values]), bits)


def fills_up_with_ones(values, bits):
    return pack(torch.cat([values, values.new_full((-len(values) % (8 // bits),), 2**bits - 1)]), bits)


def reverses_the_values(values, bits):
    return pack(values.flip(0), bits)


def reverses_the_bytes(values, bits):
    return pack(values, bits).flip(0)


def a_byte_each(values, bits):
    return torch.tensor(masked(values, bits), dtype=torch.uint8)


def always_two_bits(values, bits):
    return pack(values, 2)


def one_number(values, bits):
    return torch.tensor(sum(value << (i * bits) for i, value in enumerate(masked(values, bits))))


def in_int8(values, bits):
    return pack(values, bits).view(torch.int8)


def in_int64(values, bits):
    return pack(values, bits).long()


def adds_an_offset(values, bits):
    return pack(values.long() + 2 ** (bits - 1), bits)


def deals_them_out(values, bits):
    octets = octets_of(len(values), bits)
    return packed_by_places(values, bits, lambda i: (i % octets, i // octets * bits))


def refuses_a_byte_that_is_not_full(values, bits):
    if len(values) * bits % 8:
        raise ValueError("the values do not fill whole bytes")
    return pack(values, bits)


PACK_LOOP = Exercise(
    id="15.1",
    name="pack_loop",
    key=pack_loop,
    cases=[
        Case("[1, 0, 3, 2] and 2 bits", (FOUR, 2)),
        Case("[1, 0, 3, 2, 3, 3, 3, 3] and 2 bits", (EIGHT, 2)),
        Case("[1, 0, 3, 2, 3], which does not fill two bytes, and 2 bits", (FIVE, 2)),
        Case("[0, 5, 2, -1, 4, 3], of which 2 bits are kept", (TOO_WIDE, 2)),
        Case("seven values of 4 bits", (NIBBLES, 4)),
        Case("eleven values of 1 bit", (ONES, 1)),
        Case("three values of 8 bits", (UP_TO_255, 8)),
        Case("[1, 0, 3, 2, 1, 0, 3, 2, 0], of which the last byte is 0, and 2 bits", (LAST_BYTE_0, 2)),
        Case("no values at all", (FOUR[:0], 2)),
    ],
    mistakes=[
        Mistake(high_bits_first, "with the first value in the highest bits; ours begins with the lowest"),
        Mistake(shifts_by_the_index, "with a shift by the value's index; each value takes `bits` places, not one"),
        Mistake(shifts_by_eight, "with a shift by 8 times the index, which takes all but the first out of the byte"),
        Mistake(never_shifts, "with no shift: the values of a byte lie one over the other"),
        Mistake(
            shifts_on_into_the_next_byte,
            "with all shifts counted from the first byte; after eight bits the next one begins, at shift 0 again",
        ),
        Mistake(forgets_the_mask, "with no mask: the upper bits of a value that is too wide spill into its neighbour"),
        Mistake(assigns, "with = in place of |=: each value wipes out those that are in the byte already"),
        Mistake(drops_the_last_values, "when the last values are dropped where they do not fill a byte; round up"),
        Mistake(adds_an_empty_byte, "with count * bits // 8 + 1 bytes, one too many wherever the last is full"),
        Mistake(
            drops_a_byte_of_zero, "with a last byte of 0 left out; its values are zeros, and count like any others"
        ),
        Mistake(saturates, "with a clamp; a value that is too wide keeps its lowest bits, so take & with a mask"),
        Mistake(pads_at_the_front, "with the filling before the first value; it comes after the last"),
        Mistake(fills_up_with_ones, "with ones in the bits that are left over; they should be zeros"),
        Mistake(reverses_the_values, "with the values in reversed order"),
        Mistake(reverses_the_bytes, "with the bytes in reversed order; the first values are in byte 0"),
        Mistake(a_byte_each, "with one value a byte, not packed at all"),
        Mistake(always_two_bits, "with 2 bits, whatever `bits` says"),
        Mistake(one_number, "with one long number; cut it into bytes"),
        Mistake(in_int8, "with a result in int8, where a highest bit of 1 makes the number negative; return uint8"),
        Mistake(in_int64, "with a result that takes 8 bytes for each byte; return uint8"),
        Mistake(adds_an_offset, "with an offset added; the values are counted from 0 already"),
        Mistake(deals_them_out, "with neighbours dealt out to different bytes; fill byte 0 first"),
        Mistake(refuses_a_byte_that_is_not_full, "with an error where the last byte is not full; fill it with zeros"),
    ],
    hints=[
        "Value i begins at bit i * bits of the row. Which byte is that, and how many bits of it lie below?",
        "Byte (i * bits) // 8, offset (i * bits) % 8. Begin with bytes of 0, and or each value into its byte.",
        "`divmod(i * bits, 8)` gives both. Mask the value, shift it up by the offset, and use |= on a list of zeros; "
        "the list becomes a tensor of torch.uint8 at the end.",
    ],
    explain=how_packed,
)


# ---------------------------------------------------------------- 15.2 pack


def loops_over_the_values(values, bits):
    if values.ndim > 1:
        return torch.stack([loops_over_the_values(row, bits) for row in values])
    return pack_loop(values, bits)


def packs_down_the_columns(values, bits):
    return pack(values.movedim(0, -1), bits).movedim(-1, 0)


def packs_all_rows_as_one(values, bits):
    return pack(values.reshape(-1), bits)


def wastes_what_crosses_a_border(values, bits):
    groups = torch.nn.functional.pad(values.long() & (2**bits - 1), (0, -values.shape[-1] % (8 // bits)))
    groups = groups.unflatten(-1, (-1, 8 // bits))
    return (groups << (torch.arange(8 // bits) * bits)).sum(-1).to(torch.uint8)


def loses_what_crosses_a_border(values, bits):
    octets = torch.zeros(*values.shape[:-1], octets_of(values.shape[-1], bits), dtype=torch.uint8)
    for i in range(values.shape[-1]):
        place, offset = divmod(i * bits, 8)
        octets[..., place] |= (((values[..., i].long() & (2**bits - 1)) << offset) & 255).to(torch.uint8)
    return octets


def begins_at_the_highest_bits(values, bits):
    return from_bits(bit_matrix(values, bits).flip(-1).flatten(-2), [2**place for place in reversed(range(8))])


def mirrors_each_byte(values, bits):
    return from_bits(bit_matrix(values, bits).flatten(-2), [2**place for place in reversed(range(8))])


def mirrors_each_value(values, bits):
    return from_bits(bit_matrix(values, bits).flip(-1).flatten(-2))


def highest_byte_of_eight_first(values, bits):
    eights = torch.nn.functional.pad(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8))
    octets = pack(eights, bits).flip(-1).flatten(-2)
    return octets[..., : octets_of(values.shape[-1], bits)]


def lets_values_spill(values, bits):
    eights = torch.nn.functional.pad(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8)).long()
    word = torch.zeros(eights.shape[:-1], dtype=torch.int64)
    for i in range(8):
        word |= eights[..., i] << (i * bits)
    octets = torch.stack([(word >> (8 * i)) & 255 for i in range(bits)], dim=-1).to(torch.uint8)
    return octets.flatten(-2)[..., : octets_of(values.shape[-1], bits)]


def shifts_in_uint8(values, bits):
    eights = torch.nn.functional.pad(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    word = torch.zeros(eights.shape[:-1], dtype=torch.uint8)
    for i in range(8):
        word |= (eights[..., i] & (2**bits - 1)) << (i * bits)
    octets = torch.stack([(word >> (8 * i)) & 255 for i in range(bits)], dim=-1)
    return octets.flatten(-2)[..., : octets_of(values.shape[-1], bits)]


def shifts_in_int32(values, bits):
    eights = torch.nn.functional.pad(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.int32)
    word = torch.zeros(eights.shape[:-1], dtype=torch.int32)
    for i in range(8):
        # A shift past the end of an int32 is undefined in C; here it gives what it gives on paper, zeros.
        word |= (((eights[..., i].long() & (2**bits - 1)) << (i * bits)) & 0xFFFF_FFFF).to(torch.int32)
    octets = torch.stack([(word.long() >> (8 * i)) & 255 for i in range(bits)], dim=-1).to(torch.uint8)
    return octets.flatten(-2)[..., : octets_of(values.shape[-1], bits)]


def drops_the_rest_of_a_row(values, bits):
    return pack(values[..., : values.shape[-1] // 8 * 8], bits)


def keeps_the_filling(values, bits):
    return pack(torch.nn.functional.pad(values, (0, -values.shape[-1] % 8)), bits)


def fills_up_at_the_front(values, bits):
    return pack(torch.nn.functional.pad(values, (-values.shape[-1] % 8, 0)), bits)[
        ..., : octets_of(values.shape[-1], bits)
    ]


def goes_backwards(values, bits):
    return pack(values.flip(-1), bits)


def puts_one_in_a_byte(values, bits):
    return (values.long() & (2**bits - 1)).to(torch.uint8)


def returns_int64(values, bits):
    return pack(values, bits).long()


def returns_int8(values, bits):
    return pack(values, bits).view(torch.int8)


def shifts_codes_to_the_middle(values, bits):
    return pack(values.long() + 2 ** (bits - 1), bits)


def python_steps(answer, shape):
    """How many lines of Python run while `answer` packs zeros of `shape`, those of all that it calls included."""
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        answer(torch.zeros(shape, dtype=torch.uint8), 3)
    finally:
        sys.settrace(before)
    return steps


def runs_as_long_for_many_values_as_for_few(answer):
    """Nothing in Python may be done once for each value, each byte or each row."""
    few = python_steps(answer, (2, 64))
    for shape, things in (((2, 4096), "values in a row"), ((128, 64), "rows")):
        # A loop makes 30 times as many; a call more or less inside torch makes a few.
        if python_steps(answer, shape) > 2 * few + 100:
            return f"with 64 times as many {things}, many more lines of Python run: there is a loop over them."
    return None


def unpacks_to_what_was_packed(answer):
    """Each value survives beside each other, at each width."""
    for bits in range(1, 9):
        pairs = torch.cartesian_prod(torch.arange(2**bits), torch.arange(2**bits))[:: max(1, 4 ** (bits - 5))]
        wrong = (answer(pairs, bits).long() != pack(pairs, bits).long()).any(-1)
        if wrong.any():
            pair = pairs[wrong][0].tolist()
            return f"at {bits} bits the two values {pair} are not packed as {pack(torch.tensor(pair), bits).tolist()}."
    return None


THREES = torch.tensor([1, 0, 3, 2, 7, 5, 4, 6], dtype=torch.uint8)
# Multiples of 37: every residue occurs, in no order.
MIXED = torch.arange(60) * 37 % 101

PACK = Exercise(
    id="15.2",
    name="pack",
    key=pack,
    cases=[
        Case("[1, 0, 3, 2] and 2 bits", (FOUR, 2)),
        Case("[1, 0, 3, 2, 7, 5, 4, 6] and 3 bits", (THREES, 3)),
        Case("the first five of them and 3 bits", (THREES[:5], 3)),
        Case("two rows of eight and 3 bits", (torch.stack([THREES, THREES.flip(0)]), 3)),
        Case("three rows of ten and 2 bits", ((MIXED[:30] % 4).reshape(3, 10).to(torch.uint8), 2)),
        Case("[0, 5, 2, -1, 4, 3], of which 2 bits are kept", (TOO_WIDE, 2)),
        Case("twenty values of 5 bits in two rows", ((MIXED[:20] % 32).reshape(2, 10).to(torch.uint8), 5)),
        Case("seven values of 4 bits", (NIBBLES, 4)),
        Case("eleven values of 1 bit", (ONES, 1)),
        Case("thirteen values of 7 bits", (MIXED[:13].to(torch.uint8), 7)),
        Case("three values of 8 bits", (UP_TO_255, 8)),
        Case("a tensor of three dimensions and 6 bits", ((MIXED % 64).reshape(2, 3, 10).to(torch.uint8), 6)),
    ],
    properties=[Property(unpacks_to_what_was_packed), Property(runs_as_long_for_many_values_as_for_few)],
    mistakes=[
        Mistake(loops_over_the_values, "with a Python loop that grows with the matrix, over values, bytes or groups"),
        Mistake(packs_down_the_columns, "with the values of a column packed together; pack along the last dimension"),
        Mistake(packs_all_rows_as_one, "with all rows packed as one; each row begins with a byte of its own"),
        Mistake(
            wastes_what_crosses_a_border, "with 8 // bits values in each byte, which wastes the bits that are left over"
        ),
        Mistake(
            loses_what_crosses_a_border, "when a value that goes on in the next byte loses the bits that lie there"
        ),
        Mistake(begins_at_the_highest_bits, "with the first value in the highest bits; ours begins with the lowest"),
        Mistake(mirrors_each_byte, "with the first bit of the stream as the highest of its byte; it is the lowest"),
        Mistake(mirrors_each_value, "with the bits of each value turned round, highest first"),
        Mistake(highest_byte_of_eight_first, "with the bytes of a word highest first; the first values are in byte 0"),
        Mistake(lets_values_spill, "with no mask: the upper bits of a value that is too wide spill into its neighbour"),
        Mistake(saturates, "with a clamp; a value that is too wide keeps its lowest bits, so take & with a mask"),
        Mistake(shifts_in_uint8, "with shifts in uint8: what is shifted beyond bit 7 is gone; make the values int64"),
        Mistake(shifts_in_int32, "with shifts in int32: eight values of 5 bits or more do not fit; make them int64"),
        Mistake(drops_the_rest_of_a_row, "when the values after the last whole eight are dropped; fill them up"),
        Mistake(keeps_the_filling, "when the bytes of the filling stay; only ceil(count * bits / 8) are needed"),
        Mistake(fills_up_at_the_front, "with the filling before the first value; it comes after the last"),
        Mistake(goes_backwards, "with the values in reversed order"),
        Mistake(puts_one_in_a_byte, "with one value a byte, not packed at all"),
        Mistake(returns_int64, "with a result that takes 8 bytes for each byte; return uint8"),
        Mistake(
            returns_int8, "with a result in int8, where a highest bit of 1 makes the number negative; return uint8"
        ),
        Mistake(shifts_codes_to_the_middle, "with an offset added; the values are counted from 0 already"),
    ],
    hints=[
        "Eight values are always `bits` whole bytes. Put the values in groups of eight, in a dimension of their own, "
        "and work on all groups at once. A loop over the eight places is no loop over the values.",
        "Make one long int64 of each group: its value i, masked, goes to offset i * bits. Then take the long number "
        "apart again, eight bits at a time: byte j begins at bit 8 j. Or go by single bits: all bits of all values "
        "in one row, eight of them a byte.",
        "`torch.nn.functional.pad(values, (0, n))` adds n zeros at the end of each row and `.unflatten(-1, (-1, 8))` "
        "makes the groups. `torch.stack(…, dim=-1).flatten(-2)` lays the bytes of all groups out in a row again; cut "
        "it at ceil(count * bits / 8), and make it torch.uint8.",
    ],
    explain=how_packed,
)

EXERCISES = [PACK_LOOP, PACK]
