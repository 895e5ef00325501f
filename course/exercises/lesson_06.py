"""Exercises of lesson 6: finer granularity for more precision."""

import math

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.report import bits_per_weight
from qlib.scheme import Scheme

# ---------------------------------------------------------------- 06.1 bits_per_weight


def costs(shape, scheme, scale=32, zero_point=8, symmetric=None, blocks=None, values=None):
    """The right answer, for the mistakes below to spoil in one place each; `scale` and `zero_point` are in bits."""
    rows, columns = shape
    blocks = count_blocks(shape, scheme) if blocks is None else blocks
    values = 8 * rows * math.ceil(columns * scheme.bits / 8) if values is None else values
    symmetric = scheme.symmetric if symmetric is None else symmetric
    return (values + blocks * (scale + (0 if symmetric else zero_point))) / (rows * columns)


def count_blocks(shape, scheme):
    rows, columns = shape
    return {None: 1, 0: rows * math.ceil(columns / (scheme.group_size or columns)), 1: columns}[scheme.axis]


def counts_nothing_but_the_bits(shape, scheme):
    return float(scheme.bits)


def counts_the_integers_only(shape, scheme):
    return costs(shape, scheme, blocks=0)


def forgets_the_scales(shape, scheme):
    return costs(shape, scheme, scale=0)


def forgets_the_zero_points(shape, scheme):
    return costs(shape, scheme, zero_point=0)


def counts_a_zero_point_in_symmetric_mode(shape, scheme):
    return costs(shape, scheme, symmetric=False)


def takes_16_bit_scales(shape, scheme):
    return costs(shape, scheme, scale=16)


def takes_float_zero_points(shape, scheme):
    return costs(shape, scheme, zero_point=32)


def packs_the_zero_points(shape, scheme):
    return costs(shape, scheme, zero_point=scheme.bits)


def counts_bytes_as_bits(shape, scheme):
    return costs(shape, scheme, scale=4, zero_point=1)


def counts_bits_as_bytes(shape, scheme):
    return costs(shape, scheme, scale=8 * 32, zero_point=8 * 8)


def drops_the_shorter_group(shape, scheme):
    rows, columns = shape
    return costs(shape, scheme, blocks=rows * (columns // scheme.group_size) if scheme.group_size else None)


def adds_a_group(shape, scheme):
    rows, columns = shape
    blocks = rows * (columns // scheme.group_size + 1) if scheme.group_size else None
    return costs(shape, scheme, blocks=blocks)


def runs_groups_on_into_the_next_row(shape, scheme):
    rows, columns = shape
    blocks = math.ceil(rows * columns / scheme.group_size) if scheme.group_size else None
    return costs(shape, scheme, blocks=blocks)


def counts_the_groups_of_one_row(shape, scheme):
    return costs(shape, scheme, blocks=math.ceil(shape[1] / scheme.group_size) if scheme.group_size else None)


def overlooks_the_groups(shape, scheme):
    return costs(shape, scheme, blocks=shape[0] if scheme.group_size else None)


def counts_rows_for_columns(shape, scheme):
    return costs(shape, scheme, blocks=shape[0] if scheme.axis == 1 else None)


def swaps_the_axes(shape, scheme):
    rows, columns = shape
    swapped = {None: 1, 0: columns, 1: rows}[scheme.axis]
    return costs(shape, scheme, blocks=None if scheme.group_size else swapped)


def takes_none_for_axis_0(shape, scheme):
    return costs(shape, scheme, blocks=shape[0] if scheme.axis is None else None)


def takes_axis_0_for_none(shape, scheme):
    return costs(shape, scheme, blocks=1 if scheme.axis == 0 and not scheme.group_size else None)


def forgets_that_rows_end_at_a_byte(shape, scheme):
    return costs(shape, scheme, values=shape[0] * shape[1] * scheme.bits)


def fills_up_only_the_last_byte(shape, scheme):
    return costs(shape, scheme, values=8 * math.ceil(shape[0] * shape[1] * scheme.bits / 8))


def cuts_off_the_last_byte(shape, scheme):
    return costs(shape, scheme, values=8 * shape[0] * (shape[1] * scheme.bits // 8))


def gives_each_integer_a_byte(shape, scheme):
    return costs(shape, scheme, values=shape[0] * shape[1] * 8)


def starts_each_group_at_a_byte(shape, scheme):
    rows, columns = shape
    full, rest = divmod(columns, scheme.group_size or columns)
    group = math.ceil((scheme.group_size or columns) * scheme.bits / 8)
    return costs(shape, scheme, values=8 * rows * (full * group + math.ceil(rest * scheme.bits / 8)))


def lets_no_integer_cross_a_byte(shape, scheme):
    return costs(shape, scheme, values=8 * shape[0] * math.ceil(shape[1] / (8 // scheme.bits)))


def returns_bytes(shape, scheme):
    return costs(shape, scheme) / 8


def returns_all_the_bits(shape, scheme):
    return costs(shape, scheme) * shape[0] * shape[1]


def returns_all_the_bytes(shape, scheme):
    return costs(shape, scheme) * shape[0] * shape[1] / 8


def divides_to_a_whole_number(shape, scheme):
    return costs(shape, scheme) // 1


BITS_PER_WEIGHT = Exercise(
    id="06.1",
    name="bits_per_weight",
    key=bits_per_weight,
    cases=[
        Case("a 2 x 8 matrix, 4 bits, symmetric, per row", ((2, 8), Scheme(4))),
        Case("a 384 x 1536 matrix, 4 bits, symmetric, per group of 64", ((384, 1536), Scheme(4, group_size=64))),
        Case("a 384 x 1536 matrix, 8 bits, asymmetric, per row", ((384, 1536), Scheme(8, symmetric=False))),
        Case("a 384 x 1536 matrix, 8 bits, symmetric, per column", ((384, 1536), Scheme(8, axis=1))),
        Case("a 3 x 3 matrix, 8 bits, asymmetric, per tensor", ((3, 3), Scheme(8, symmetric=False, axis=None))),
        Case(
            "a 3 x 14 matrix, 4 bits, asymmetric, per group of 4, the last group of a row shorter",
            ((3, 14), Scheme(4, symmetric=False, group_size=4)),
        ),
        Case(
            "a 7 x 5 matrix, 3 bits, symmetric, per column, so that a row does not fill its last byte",
            ((7, 5), Scheme(3, axis=1)),
        ),
        Case("a 2 x 10 matrix, 3 bits, symmetric, per group of 4", ((2, 10), Scheme(3, group_size=4))),
        Case("a 3 x 6 matrix, 2 bits, symmetric, per tensor", ((3, 6), Scheme(2, axis=None))),
    ],
    mistakes=[
        Mistake(counts_nothing_but_the_bits, "with nothing but the bits of the scheme; each block has a scale as well"),
        Mistake(counts_the_integers_only, "without the scales and zero points"),
        Mistake(forgets_the_scales, "without the scales"),
        Mistake(forgets_the_zero_points, "without the zero points; in asymmetric mode each block has one, of one byte"),
        Mistake(
            counts_a_zero_point_in_symmetric_mode, "with a zero point in symmetric mode, where it is 0 and not kept"
        ),
        Mistake(takes_16_bit_scales, "with scales of 16 bits; a QTensor keeps them in float32, 32 bits each"),
        Mistake(takes_float_zero_points, "with zero points of 32 bits; a QTensor keeps them in int8, one byte each"),
        Mistake(packs_the_zero_points, "with zero points as narrow as the weights; each takes a whole byte"),
        Mistake(counts_bytes_as_bits, "when the 4 bytes of a scale and the 1 of a zero point are counted as bits"),
        Mistake(counts_bits_as_bytes, "when the 32 bits of a scale and the 8 of a zero point are counted as bytes"),
        Mistake(drops_the_shorter_group, "when a shorter group at the end of a row gets no scale; round up"),
        Mistake(adds_a_group, "with one group too many where the groups come out even; round up and do not add one"),
        Mistake(
            runs_groups_on_into_the_next_row, "with groups that run on into the next row; each row starts a new one"
        ),
        Mistake(counts_the_groups_of_one_row, "with the groups of one row; every row has as many"),
        Mistake(overlooks_the_groups, "with one scale a row, although the scheme has a group_size"),
        Mistake(counts_rows_for_columns, "with as many scales as rows, although axis=1 has one for each column"),
        Mistake(swaps_the_axes, "with rows and columns swapped; axis 0 has a scale for each row"),
        Mistake(takes_none_for_axis_0, "with a scale a row for axis=None; `not scheme.axis` is true of None and of 0"),
        Mistake(takes_axis_0_for_none, "with a single scale for axis=0; `if scheme.axis` is false of 0 as of None"),
        Mistake(forgets_that_rows_end_at_a_byte, "with no filling; each row of integers takes whole bytes"),
        Mistake(
            fills_up_only_the_last_byte,
            "with all the integers packed as one run; each row takes whole bytes of its own",
        ),
        Mistake(cuts_off_the_last_byte, "when the last byte of a row is cut off; round up to whole bytes"),
        Mistake(gives_each_integer_a_byte, "with a byte for every integer; a QTensor packs them"),
        Mistake(starts_each_group_at_a_byte, "when each group starts at a byte of its own; only a row does"),
        Mistake(
            lets_no_integer_cross_a_byte,
            "with 8 // bits integers in a byte; a 3-bit integer may begin in one byte and end in the next",
        ),
        Mistake(returns_bytes, "in bytes; the question is how many bits"),
        Mistake(returns_all_the_bits, "when you do not divide by the number of weights"),
        Mistake(
            returns_all_the_bytes, "with the bytes of the whole matrix; the question is how many bits a weight costs"
        ),
        Mistake(divides_to_a_whole_number, "with `//`, which drops the fraction that you are after"),
    ],
    hints=[
        "Count bytes: those of the packed integers, then one scale for each block, then the zero points if there are "
        "any. Bits per weight is eight times that, divided by the number of weights.",
        "A row takes ceil(columns * bits / 8) bytes. There is 1 block per tensor, `rows` per row, `columns` per column, "
        "and rows * ceil(columns / group_size) per group. A block keeps 4 bytes, or 5 in asymmetric mode.",
        "`math.ceil` rounds up. Ask `scheme.group_size is not None` first, then whether `scheme.axis` is None, 0 or 1; "
        "`4 if scheme.symmetric else 5` is what a block keeps.",
    ],
)

EXERCISES = [BITS_PER_WEIGHT]
