"""Exercises of lesson 16: unpacking 2-bit weights, and a layer that computes from them."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property
from course.exercises.lesson_15 import runs_as_long_for_many_values_as_for_few
from qlib.affine import dequantize, quant_range
from qlib.linear import packed_linear
from qlib.packing import from_twos_complement, pack, unpack

linear = torch.nn.functional.linear

# ---------------------------------------------------------------- 16.1 unpack

COURSE = torch.tensor([177, 255], dtype=torch.uint8)
FIVE = torch.tensor([177, 3], dtype=torch.uint8)
THREES = torch.tensor([193, 244, 210], dtype=torch.uint8)
NIBBLES = torch.tensor([0xE5, 0x39, 0x7C, 0x01], dtype=torch.uint8)
# Multiples of 37: every residue occurs, in no order.
MIXED = (torch.arange(60) * 37 % 251).to(torch.uint8)


def held(packed, bits, count):
    return packed.shape[-1] * 8 // bits if count is None else count


def shifted(packed, bits, shifts, keep=lambda values, bits: values & (2**bits - 1)):
    """One value for each byte and shift, at widths that divide 8: (..., bytes * shifts), in int64."""
    return keep(packed.long().unsqueeze(-1) >> torch.tensor(shifts), bits).flatten(-2)


def shifts_of(bits):
    return list(range(0, 8 - bits + 1, bits))


def cut(values, packed, bits, count):
    return values[..., : held(packed, bits, count)].to(torch.uint8)


def high_bits_first(packed, bits, count=None):
    return cut(shifted(packed, bits, shifts_of(bits)[::-1]), packed, bits, count)


def no_mask(packed, bits, count=None):
    return cut(shifted(packed, bits, shifts_of(bits), lambda values, bits: values), packed, bits, count)


def masks_before_it_shifts(packed, bits, count=None):
    low = packed.long().unsqueeze(-1) & (2**bits - 1)
    return cut((low >> torch.tensor(shifts_of(bits))).flatten(-2), packed, bits, count)


def masks_with_a_power_of_two(packed, bits, count=None):
    return cut(shifted(packed, bits, shifts_of(bits), lambda values, bits: values & 2**bits), packed, bits, count)


def masks_with_the_width(packed, bits, count=None):
    return cut(shifted(packed, bits, shifts_of(bits), lambda values, bits: values & bits), packed, bits, count)


def masks_without_shifting(packed, bits, count=None):
    masks = (2**bits - 1) << torch.tensor(shifts_of(bits))
    return cut((packed.long().unsqueeze(-1) & masks).flatten(-2), packed, bits, count)


def shifts_by_the_index(packed, bits, count=None):
    return cut(shifted(packed, bits, list(range(8 // bits))), packed, bits, count)


def shifts_to_the_left(packed, bits, count=None):
    left = packed.unsqueeze(-1) << torch.tensor(shifts_of(bits), dtype=torch.uint8)
    return cut(left.flatten(-2), packed, bits, count)


def one_value_a_byte(packed, bits, count=None):
    return packed & (2**bits - 1)


def always_two_bits(packed, bits, count=None):
    return unpack(packed, 2)[..., : held(packed, bits, count)]


def ignores_the_count(packed, bits, count=None):
    return unpack(packed, bits)


def counts_bytes(packed, bits, count=None):
    return unpack(packed, bits)[..., : packed.shape[-1] if count is None else (count * bits + 7) // 8]


def drops_from_the_front(packed, bits, count=None):
    values = unpack(packed, bits)
    return values[..., values.shape[-1] - held(packed, bits, count) :]


def cuts_the_rows(packed, bits, count=None):
    return unpack(packed, bits)[: held(packed, bits, count)]


def keeps_whole_eights(packed, bits, count=None):
    filled = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits))
    return unpack(filled, bits)[..., :count]


def asks_for_whole_eights(packed, bits, count=None):
    if packed.shape[-1] % bits:
        raise RuntimeError("the bytes do not make whole groups")
    return unpack(packed, bits, count)


def takes_none_for_a_number(packed, bits, count=None):
    if count > packed.shape[-1] * 8 // bits:
        raise ValueError("too few bytes")
    return unpack(packed, bits, count)


def all_first_values_then_all_second(packed, bits, count=None):
    values = (packed.long().unsqueeze(-1) >> torch.tensor(shifts_of(bits))) & (2**bits - 1)
    return cut(values.mT.flatten(-2), packed, bits, count)


def flattens_the_rows(packed, bits, count=None):
    return unpack(packed, bits, count).flatten()


def unpacks_one_long_row(packed, bits, count=None):
    return unpack(packed.flatten(), bits, count)


def unpacks_down_the_columns(packed, bits, count=None):
    return unpack(packed.movedim(0, -1), bits, count).movedim(-1, 0)


def reverses_the_bytes(packed, bits, count=None):
    return unpack(packed.flip(-1), bits, count)


def reverses_the_values(packed, bits, count=None):
    return unpack(packed, bits, count).flip(-1)


def highest_byte_of_a_group_first(packed, bits, count=None):
    groups = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    return unpack(groups.flip(-1).flatten(-2), bits)[..., : held(packed, bits, count)]


def wastes_the_bits_at_a_border(packed, bits, count=None):
    return shifted(packed, bits, shifts_of(bits))[..., :count].to(torch.uint8)


def loses_what_lies_in_the_next_byte(packed, bits, count=None):
    begins = torch.arange(held(packed, bits, count)) * bits
    return ((packed.long()[..., begins // 8] >> (begins % 8)) & (2**bits - 1)).to(torch.uint8)


def in_words_of(packed, bits, count, keep):
    """As `unpack` does it, but with a group of bytes as one number that has only as many bits as `keep` leaves."""
    octets = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits)).long()
    word = keep((octets << (8 * torch.arange(bits))).sum(-1))
    values = (word.unsqueeze(-1) >> (bits * torch.arange(8))) & (2**bits - 1)
    return cut(values.flatten(-2), packed, bits, count)


def joins_bytes_in_uint8(packed, bits, count=None):
    return in_words_of(packed, bits, count, lambda word: word & 255)


def joins_bytes_in_int32(packed, bits, count=None):
    return in_words_of(packed, bits, count, lambda word: word & 0xFFFF_FFFF)


def loops_over_the_values(packed, bits, count=None):
    rows = []
    for row in packed.reshape(-1, packed.shape[-1]).tolist():
        number = int.from_bytes(bytes(row), "little")
        rows.append([number >> (bits * i) & (2**bits - 1) for i in range(held(packed, bits, count))])
    return torch.tensor(rows, dtype=torch.uint8).reshape(*packed.shape[:-1], held(packed, bits, count))


def reads_twos_complement(packed, bits, count=None):
    if bits == 1:
        return -unpack(packed, bits, count).to(torch.int8)
    return from_twos_complement(unpack(packed, bits, count), bits)


def takes_the_offset_off(packed, bits, count=None):
    return (unpack(packed, bits, count).to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def returns_int64(packed, bits, count=None):
    return unpack(packed, bits, count).long()


def where_it_is(args, index):
    """Where the right value stands, in words."""
    packed, bits, *_ = args
    place, offset = divmod(index[-1] * bits, 8)
    first = packed[(*index[:-1], place)].item()
    across = f" and goes on in byte {place + 1}" if offset + bits > 8 else ""
    return f"this value begins in byte {place}, {first:08b}, at offset {offset}{across}"


UNPACK = Exercise(
    id="16.1",
    name="unpack",
    key=unpack,
    cases=[
        Case("[177, 255] and 2 bits", (COURSE, 2)),
        Case("[177, 3], 2 bits and a count of 5", (FIVE, 2), {"count": 5}),
        Case("[193, 244, 210] and 3 bits", (THREES, 3)),
        Case("[193, 116], 3 bits and a count of 5", (torch.tensor([193, 116], dtype=torch.uint8), 3), {"count": 5}),
        Case("[193, 244] and 3 bits", (THREES[:2], 3)),
        Case("three rows of three bytes, 2 bits and a count of 10", (MIXED[:9].reshape(3, 3), 2), {"count": 10}),
        Case("two rows of seven bytes, 5 bits and a count of 11", (MIXED[:14].reshape(2, 7), 5), {"count": 11}),
        Case("four bytes, 4 bits and a count of 7", (NIBBLES, 4), {"count": 7}),
        Case("two bytes, 1 bit and a count of 11", (COURSE, 1), {"count": 11}),
        Case("thirteen bytes and 7 bits", (MIXED[:13], 7)),
        Case("four bytes and 8 bits", (NIBBLES, 8)),
        Case("a tensor of three dimensions and 6 bits", (MIXED[:54].reshape(2, 3, 9), 6)),
    ],
    properties=[Property(runs_as_long_for_many_values_as_for_few)],
    mistakes=[
        Mistake(high_bits_first, "with the first value in the highest bits; ours begins with the lowest"),
        Mistake(no_mask, "with no mask: the values above it come along; keep the `bits` lowest bits after the shift"),
        Mistake(masks_before_it_shifts, "with the mask before the shift: only value 0 is left, and is shifted out"),
        Mistake(masks_with_a_power_of_two, "with the mask 2**bits, a single 1; the mask is 2**bits - 1"),
        Mistake(masks_with_the_width, "with `bits` itself as the mask; the mask is 2**bits - 1"),
        Mistake(masks_without_shifting, "when each value stays where it stands in its byte; shift it to the bottom"),
        Mistake(shifts_by_the_index, "with a shift by the value's index; each value takes `bits` places, not one"),
        Mistake(shifts_to_the_left, "with a shift to the left; that is for packing"),
        Mistake(one_value_a_byte, "with one value for each byte; a byte holds several"),
        Mistake(always_two_bits, "with 2 bits, whatever `bits` says"),
        Mistake(ignores_the_count, "when the values that fill up the last byte stay; cut each row at `count`"),
        Mistake(counts_bytes, "with the number of bytes for the number of values"),
        Mistake(drops_from_the_front, "when what is too many is dropped at the front; the filling is at the end"),
        Mistake(cuts_the_rows, "when the first dimension is cut at `count`; the values of a row are in the last one"),
        Mistake(keeps_whole_eights, "when without a count the zeros stay that make whole eights of the values"),
        Mistake(
            asks_for_whole_eights, "with an error where the bytes make no whole eights of values; fill up with zeros"
        ),
        Mistake(takes_none_for_a_number, "when `count` is None, as it is by default, and is used as a number"),
        Mistake(
            all_first_values_then_all_second,
            "with the first values of all bytes before the second ones; a byte's values stay together",
        ),
        Mistake(flattens_the_rows, "when the rows become one; only the last dimension changes"),
        Mistake(unpacks_one_long_row, "with all rows read as one; each row begins with a byte of its own"),
        Mistake(unpacks_down_the_columns, "with the bytes of a column read together; unpack along the last dimension"),
        Mistake(reverses_the_bytes, "with the bytes in reversed order; the first values are in byte 0"),
        Mistake(reverses_the_values, "with the values in reversed order"),
        Mistake(highest_byte_of_a_group_first, "with the bytes of a group joined highest first; byte 0 is the lowest"),
        Mistake(
            wastes_the_bits_at_a_border, "with 8 // bits values in each byte; at 3 bits a value goes on in the next"
        ),
        Mistake(loses_what_lies_in_the_next_byte, "when of a value that goes on in the next byte those bits are lost"),
        Mistake(joins_bytes_in_uint8, "with bytes joined in uint8, where only the first has room; make them int64"),
        Mistake(joins_bytes_in_int32, "with bytes joined in int32: from 5 bits on eight values do not fit; take int64"),
        Mistake(loops_over_the_values, "with a Python loop over the values, one after the other"),
        Mistake(reads_twos_complement, "with the top bit read as a sign; the codes count from 0, and are uint8"),
        Mistake(takes_the_offset_off, "with the offset taken off; that comes later, the codes are from 0 on, in uint8"),
        Mistake(returns_int64, "with a result that takes 8 bytes for each value; return uint8"),
    ],
    hints=[
        "Go the way of `pack` backwards. At 2 bits: what shift brings each of a byte's four values to the bottom, and "
        "what mask leaves it alone? For any width: eight values are always `bits` whole bytes.",
        "Put the bytes in groups of `bits`, in a dimension of their own, and join each group to one long int64: byte j "
        "goes to offset 8 j. Value i of the long number begins at bit i * bits. Fill up the last group with zeros, and "
        "cut the row at `count`, or at as many values as the bytes hold whole.",
        "`torch.nn.functional.pad(packed, (0, n))` adds n zero bytes to each row and `.unflatten(-1, (-1, bits))` "
        "makes the groups. `torch.stack(…, dim=-1).flatten(-2)` lays the eight values of all groups out in a row "
        "again; cut the row, and make it torch.uint8.",
    ],
    explain=where_it_is,
)


# ---------------------------------------------------------------- 16.2 packed_linear

# Scales are powers of two and inputs quarters: every sum is exact, in bfloat16 as well, in whatever order it is made.
VALUES_2 = torch.tensor([[-1, -2, 1, 0, 1, 1, 1, -2], [0, 1, -1, -2, -2, 0, 1, -1]])
SCALE_2 = torch.tensor([[0.5, 2.0], [0.25, 1.0]])
ZERO_2 = torch.tensor([[0, -1], [1, -2]], dtype=torch.int8)
X_8 = torch.tensor([[1.0, 2.0, -1.0, 0.5, 0.0, 1.5, -2.0, 1.0], [0.5, -1.0, 2.0, 1.0, -0.5, 2.0, 1.0, 0.0]])
BIAS_2 = torch.tensor([1.0, -4.0])
RAGGED = torch.tensor([[1, -2, 0, -1, 1, -2, -1, 0, 1, 1], [0, 1, -2, -2, 1, 0, 0, -1, -2, 1], [1] * 9 + [-2]])
SCALE_RAGGED = torch.tensor([[1.0, 0.5, 4.0], [0.25, 2.0, 1.0], [0.5, 0.5, 8.0]])
ZERO_RAGGED = torch.tensor([[-1, 1, 0], [0, -2, 1], [1, 0, -1]], dtype=torch.int8)
X_10 = torch.tensor([[1.0, -2.0, 0.5, 1.5, -1.0, 2.0, 0.0, 1.0, -0.5, 2.0]])
SQUARE = torch.tensor([[3, -4, 0, 1], [-2, 2, 3, -1], [1, 0, -4, -3], [2, 3, -1, 0]])
SCALE_SQUARE = torch.tensor([[0.5, 1.0], [2.0, 0.25], [1.0, 4.0], [0.25, 0.5]])
ZERO_SQUARE = torch.tensor([[1, -2], [0, 3], [-4, 1], [2, 0]], dtype=torch.int8)
X_4 = torch.tensor([[[1.0, -0.5, 2.0, 0.0], [0.5, 1.0, -1.0, 3.0]], [[0.0, 2.0, 1.0, -1.0], [1.5, 0.0, 0.5, 1.0]]])
LARGE = torch.tensor([[127, -128, 5], [-100, 64, 90]])


def packed_of(values, bits):
    return pack(values - quant_range(bits)[0], bits)


TWO_BIT = (packed_of(VALUES_2, 2), SCALE_2, ZERO_2, 2, 4)
OTHER_TWO_BIT = (packed_of(VALUES_2.flip(0, 1), 2), SCALE_2, ZERO_2, 2, 4)


def formula(
    x, packed, scale, zero_point, bits, group_size, bias=None, *, codes_to_values=None, spread=None, to_real=None
):
    """The right formula, of which each mistake replaces a step."""
    inputs = x.shape[-1]
    codes = unpack(packed, bits, inputs)
    values = (codes_to_values or right_values)(codes, bits)
    scale, zero_point = ((spread or right_spread)(part, group_size, inputs) for part in (scale, zero_point))
    weight = (to_real or dequantize)(values, scale, zero_point)
    return linear(x, weight.to(x.dtype), bias)


def right_values(codes, bits):
    return codes.to(torch.int16) - 2 ** (bits - 1)


def right_spread(part, group_size, inputs):
    return part.repeat_interleave(group_size, dim=1)[:, :inputs]


def with_step(name, **steps):
    """A wrong answer: the formula with a step replaced."""

    def answer(x, packed, scale, zero_point, bits, group_size, bias=None):
        return formula(x, packed, scale, zero_point, bits, group_size, bias, **steps)

    answer.__name__ = name
    return answer


def one_for_the_row(part, group_size, inputs):
    return part[:, :1].expand(-1, inputs)


def dealt_out(part, group_size, inputs):
    return part.repeat(1, group_size)[:, :inputs]


def transposed_groups(part, group_size, inputs):
    return right_spread(part.reshape(part.shape[::-1]).T, group_size, inputs)


def equal_groups(part, group_size, inputs):
    return part.repeat_interleave(inputs // part.shape[1], dim=1)


def by_the_width(x, packed, scale, zero_point, bits, group_size, bias=None):
    return formula(x, packed, scale, zero_point, 2, group_size, bias)


def keeps_the_filling(x, packed, scale, zero_point, bits, group_size, bias=None):
    values = right_values(unpack(packed, bits), bits)
    width = values.shape[1]
    scale, zero_point = (right_spread(part, group_size, width) for part in (scale, zero_point))
    return linear(x, dequantize(values, scale, zero_point).to(x.dtype), bias)


def multiplies_untransposed(x, packed, scale, zero_point, bits, group_size, bias=None):
    weight = formula(torch.eye(x.shape[-1]), packed, scale, zero_point, bits, group_size).T
    y = x @ weight.to(x.dtype)
    return y if bias is None else y + bias


def scale_of_the_first_group_at_the_end(x, packed, scale, zero_point, bits, group_size, bias=None):
    ones = torch.ones_like(scale)
    y = formula(x, packed, ones, zero_point, bits, group_size) * scale[:, 0].to(x.dtype)
    return y if bias is None else y + bias


def forgets_the_bias(x, packed, scale, zero_point, bits, group_size, bias=None):
    return packed_linear(x, packed, scale, zero_point, bits, group_size)


def always_adds_the_bias(x, packed, scale, zero_point, bits, group_size, bias=None):
    return packed_linear(x, packed, scale, zero_point, bits, group_size) + bias


def asks_whether_the_bias_is_true(x, packed, scale, zero_point, bits, group_size, bias=None):
    y = packed_linear(x, packed, scale, zero_point, bits, group_size)
    return y + bias if bias else y


def scales_the_bias_too(x, packed, scale, zero_point, bits, group_size, bias=None):
    y = packed_linear(x, packed, scale, zero_point, bits, group_size)
    return y if bias is None else y + bias * scale[:, 0]


def never_casts_the_weight(x, packed, scale, zero_point, bits, group_size, bias=None):
    scale, zero_point = (right_spread(part, group_size, x.shape[-1]) for part in (scale, zero_point))
    weight = dequantize(right_values(unpack(packed, bits, x.shape[-1]), bits), scale, zero_point)
    return linear(x, weight, bias)


def stays_in_float32(x, packed, scale, zero_point, bits, group_size, bias=None):
    bias = None if bias is None else bias.float()
    return packed_linear(x.float(), packed, scale, zero_point, bits, group_size, bias)


KEPT = {}


def keeps_the_unpacked_weight(x, packed, scale, zero_point, bits, group_size, bias=None):
    key = (packed.shape, bits)
    if key not in KEPT:
        KEPT[key] = formula(torch.eye(x.shape[-1]), packed, scale, zero_point, bits, group_size).T.clone()
    return linear(x, KEPT[key].to(x.dtype), bias)


def moves_the_zero_point_in_place(x, packed, scale, zero_point, bits, group_size, bias=None):
    y = packed_linear(x, packed, scale, zero_point, bits, group_size, bias)
    zero_point -= quant_range(bits)[0]
    return y


def how_summed(args, index):
    x, packed, scale, zero_point, bits, group_size, *bias = args
    weight = formula(torch.eye(x.shape[-1]), packed, scale, zero_point, bits, group_size).T[index[-1]]
    plus = f", and the bias is {bias[0][index[-1]].item():g}" if bias and bias[0] is not None else ""
    return f"the weights of this output are [{', '.join(f'{w:g}' for w in weight.tolist())}]{plus}"


PACKED_LINEAR = Exercise(
    id="16.2",
    name="packed_linear",
    key=packed_linear,
    cases=[
        Case("two inputs of 8 numbers, two outputs, 2 bits, groups of 4", (X_8, *TWO_BIT)),
        Case("the same call on another weight of that shape", (X_8, *OTHER_TWO_BIT)),
        Case("the first weight and a bias", (X_8, *TWO_BIT, BIAS_2)),
        Case("a single input, a vector, and a bias", (X_8[0], *TWO_BIT, BIAS_2)),
        Case("10 inputs in groups of 4", (X_10, packed_of(RAGGED, 2), SCALE_RAGGED, ZERO_RAGGED, 2, 4)),
        Case(
            "4 inputs, 4 outputs, 3 bits, groups of 2 and a batch of 2 x 2",
            (X_4, packed_of(SQUARE, 3), SCALE_SQUARE, ZERO_SQUARE, 3, 2),
        ),
        Case(
            "3 inputs, 8 bits and one group a row",
            (X_4[0, :, :3], packed_of(LARGE, 8), SCALE_2[:, :1], torch.tensor([[-3], [100]], dtype=torch.int8), 8, 3),
        ),
        Case("an input and a bias of bfloat16", (X_8.bfloat16(), *TWO_BIT, BIAS_2.bfloat16())),
    ],
    mistakes=[
        Mistake(
            with_step("forgets_the_offset", codes_to_values=lambda codes, bits: codes),
            "when the codes are taken for the integers; the code 0 stands for the smallest one, -2 at 2 bits",
        ),
        Mistake(
            with_step("adds_the_offset", codes_to_values=lambda codes, bits: codes.to(torch.int16) + 2 ** (bits - 1)),
            "with the offset added to the codes; quant_range(bits)[0] is negative, and is what to add",
        ),
        Mistake(
            with_step(
                "counts_from_one_too_many", codes_to_values=lambda c, bits: c.to(torch.int16) - quant_range(bits)[1]
            ),
            "with the codes counted from -qmax; the smallest integer is one lower",
        ),
        Mistake(
            with_step("reads_twos_complement", codes_to_values=from_twos_complement),
            "when the top bit of a code is read as a sign; the codes count from the smallest integer",
        ),
        Mistake(
            with_step("stays_in_uint8", codes_to_values=lambda codes, bits: codes - 2 ** (bits - 1)),
            "when the offset is taken off in uint8: 0 - 2 is 254 there; make the codes signed first",
        ),
        Mistake(
            with_step("zero_point_after_the_scale", to_real=lambda q, s, z: s * q.float() - z),
            "with the zero point taken off after the scale; it counts in steps, so it goes first",
        ),
        Mistake(
            with_step("adds_the_zero_point", to_real=lambda q, s, z: s * (q.float() + z)),
            "with the zero point added; it is taken off",
        ),
        Mistake(with_step("forgets_the_zero_point", to_real=lambda q, s, z: s * q.float()), "without the zero point"),
        Mistake(with_step("forgets_the_scale", to_real=lambda q, s, z: q.float() - z), "without the scales"),
        Mistake(
            with_step("divides_by_the_scale", to_real=lambda q, s, z: (q.float() - z) / s),
            "with a division by the scales; they turn steps into numbers, so multiply",
        ),
        Mistake(
            with_step("one_scale_for_the_row", spread=one_for_the_row),
            "with the first group's scale and zero point for the whole row",
        ),
        Mistake(
            with_step("deals_the_scales_out", spread=dealt_out),
            "with the groups' scales dealt out in turn (repeat); a scale stays for a whole group (repeat_interleave)",
        ),
        Mistake(
            with_step("mixes_rows_and_groups", spread=transposed_groups),
            "with the scales' rows and columns mixed up; they are of shape (outputs, groups)",
        ),
        Mistake(
            with_step("makes_equal_groups", spread=equal_groups),
            "with inputs // groups columns in a group; go by group_size, for the last one may be shorter",
        ),
        Mistake(by_the_width, "with 2 bits, whatever `bits` says"),
        Mistake(keeps_the_filling, "when the codes that fill up the last byte stay; a row has x.shape[-1] of them"),
        Mistake(multiplies_untransposed, "without the transposition; the weight is (outputs, inputs)"),
        Mistake(
            scale_of_the_first_group_at_the_end,
            "with one scale on the finished sums; the groups of a row have different ones, so scale the weights",
        ),
        Mistake(forgets_the_bias, "without the bias"),
        Mistake(always_adds_the_bias, "when the bias is None and is added all the same"),
        Mistake(asks_whether_the_bias_is_true, "with `if bias`; ask `if bias is not None`"),
        Mistake(scales_the_bias_too, "with the scale on the bias as well"),
        Mistake(
            never_casts_the_weight, "with a float32 weight on an input of another dtype; cast the weight to x.dtype"
        ),
        Mistake(stays_in_float32, "with a result in float32; it should have the dtype of x"),
        Mistake(
            keeps_the_unpacked_weight,
            "when the unpacked weight is kept from one call to the next; unpack at every call, and keep nothing",
        ),
        Mistake(
            moves_the_zero_point_in_place, "with an operation in place on the zero point, which is the layer's own"
        ),
    ],
    hints=[
        "Four steps: bytes to codes, codes to integers, integers to real numbers, and a matrix product. You have "
        "written each of them before.",
        "codes = unpack, as many in a row as x has inputs; q = code + qmin, in a dtype that holds negative numbers; "
        "w = s (q - z), where each group's s and z are repeated for the columns of the group; then y = x wᵀ + b.",
        "`scale.repeat_interleave(group_size, dim=1)[:, :inputs]` spreads the scales, and the same the zero points. "
        "`quant_range(bits)[0]` is qmin. `torch.nn.functional.linear(x, weight, bias)` wants all three in one dtype.",
    ],
    explain=how_summed,
)

EXERCISES = [UNPACK, PACKED_LINEAR]
