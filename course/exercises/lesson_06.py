"""Exercises of lesson 6: finer granularity for more precision."""

from course.exercises.exercise import Case, Exercise
from course.exercises.mistakes import Mistake, edit
from qlib.report import bits_per_weight
from qlib.scheme import Scheme

# ---------------------------------------------------------------- 06.1 bits_per_weight


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
        Case("a 3 x 14 matrix, 4 bits, asymmetric, per group of 4, the last group of a row shorter", ((3, 14), Scheme(4, symmetric=False, group_size=4))),
        Case("a 7 x 5 matrix, 3 bits, symmetric, per column, so that a row ends inside a byte", ((7, 5), Scheme(3, axis=1))),
        Case("a 2 x 10 matrix, 3 bits, symmetric, per group of 4", ((2, 10), Scheme(3, group_size=4))),
        Case("a 3 x 6 matrix, 2 bits, symmetric, per tensor", ((3, 6), Scheme(2, axis=None))),
    ],
    mistakes=[
        Mistake(edit("8 * (packed_bytes + scale_bytes) / (rows * columns)", "float(scheme.bits)"), "with nothing but the bits of the scheme; each block has a scale as well"),
        Mistake(edit(" + scale_bytes", ""), "without the scales and zero points"),
        Mistake(edit("4 if", "0 if", "else 5", "else 1"), "without the scales"),
        Mistake(edit("else 5", "else 4"), "without the zero points; in asymmetric mode each block has one, a byte"),
        Mistake(edit("4 if", "5 if"), "with a zero point in symmetric mode, where it is 0 and not kept"),
        Mistake(edit("4 if", "2 if", "else 5", "else 3"), "with scales of 16 bits; a QTensor keeps them in float32"),
        Mistake(edit("else 5", "else 8"), "with zero points of 32 bits; a QTensor keeps them in int8, one byte each"),
        Mistake(edit("else 5", "else 4 + scheme.bits / 8"), "with zero points as narrow as weights; each takes a byte"),
        Mistake(edit("8 * (packed_bytes + s", "(8 * packed_bytes + s"), "when the 4 bytes of a scale and the 1 of a zero point are counted as bits"),
        Mistake(edit("packed_bytes + s", "packed_bytes + 8 * s"), "when the 32 bits of a scale and the 8 of a zero point are counted as bytes"),
        Mistake(edit("math.ceil(columns / (", "(columns // ("), "when a shorter last group gets no scale; round up"),
        Mistake(
            edit("math.ceil(columns / (scheme.group_size or columns))", "columns // (scheme.group_size or columns + 1) + 1"),
            "with one group too many where the groups come out even; round up and do not add one",
        ),
        Mistake(edit("rows * groups_in_a_row", "math.ceil(rows * columns / (scheme.group_size or columns))"), "with groups that run on into the next row; each row starts a new one"),
        Mistake(edit("rows * groups_in_a_row", "groups_in_a_row if scheme.group_size else rows"), "with the groups of one row; every row has as many"),
        Mistake(edit("rows * groups_in_a_row", "columns * math.ceil(rows / scheme.group_size) if scheme.group_size else rows"), "with groups that run down the columns; they run along a row"),
        Mistake(edit("rows * groups_in_a_row", "rows"), "with one scale a row, although the scheme has a group_size"),
        Mistake(edit("1: columns", "1: rows"), "with as many scales as rows, although axis=1 has one for each column"),
        Mistake(edit("groups_in_a_row, 1: columns", "groups_in_a_row if scheme.group_size else columns, 1: rows"), "with rows and columns swapped; axis 0 has a scale for each row"),
        Mistake(edit("None: 1", "None: rows"), "with a scale a row for axis=None; `not scheme.axis` is true of 0, too"),
        Mistake(edit("[scheme.axis]", "[scheme.axis if scheme.group_size else scheme.axis or None]"), "with a single scale for axis=0; `if scheme.axis` is false of 0 as of None"),
        Mistake(edit("math.ceil(columns *", "(columns *"), "with no filling; each row of integers takes whole bytes"),
        Mistake(edit("rows * math.ceil(columns *", "math.ceil(rows * columns *"), "with all the integers packed as one run; each row takes whole bytes of its own"),
        Mistake(edit("math.ceil(columns * scheme.bits / 8)", "(columns * scheme.bits // 8)"), "when the last byte of a row is cut off; round up to whole bytes"),
        Mistake(edit("* scheme.bits / 8", ""), "with a byte for every integer; a QTensor packs them"),
        Mistake(
            edit(
                "math.ceil(columns * scheme.bits / 8)",
                "sum(math.ceil(len(range(columns)[i : i + (scheme.group_size or columns)]) * scheme.bits / 8) for i in range(0, columns, scheme.group_size or columns))",
            ),
            "when each group starts at a byte of its own; only a row does",
        ),
        Mistake(edit("(columns *", "(groups_in_a_row * (scheme.group_size or columns) *"), "with the integers of a shorter group filled up to a whole one; it is packed as short as it is"),
        Mistake(edit("* scheme.bits / 8", "/ (8 // scheme.bits)"), "with 8 // bits integers in a byte; a 3-bit integer may begin in one byte and end in the next"),
        Mistake(edit("8 * (p", "(p"), "in bytes; the question is how many bits"),
        Mistake(edit(" / (rows * columns)", ""), "when you do not divide by the number of weights"),
        Mistake(edit("8 * (p", "(p", " / (rows * columns)", ""), "with the bytes of the whole matrix; the question is how many bits a weight costs"),
        Mistake(edit("/ (rows * columns)", "// (rows * columns)"), "with `//`, which drops the fraction"),
        Mistake(edit("return 8 * (", "return round(8 * (", "rows * columns)", "rows * columns))"), "with a rounded result; the fraction counts"),
        Mistake(edit("(rows * columns)", "rows * columns"), "without brackets around rows * columns: Python divides by the rows and then multiplies by the columns"),
        Mistake(edit("math.ceil(columns / (", "(columns / ("), "with a fraction of a group where the last is shorter; round up"),
        Mistake(edit("math.ceil(columns / ", "round(columns / "), "with the number of groups rounded to the nearest; round up"),
        Mistake(edit("(4 if scheme.symmetric else 5)", "4 + (not scheme.symmetric)"), "with a single zero point for the matrix; each block has one"),
    ],
    equivalent=dict.fromkeys(
        [
            "without: if scheme.scales != 'float32':",
            "scheme.scales != 'float32' -> scheme.scales == 'float32'",
            "8 * stored_bytes(shape, scheme) / math.prod(shape) -> 8 * stored_bytes(shape, scheme) * math.prod(shape)",
            "8 * stored_bytes(shape, scheme) -> 8 / stored_bytes(shape, scheme)",
            "8 * stored_bytes(shape, scheme) -> 9 * stored_bytes(shape, scheme)",
            "8 * stored_bytes(shape, scheme) -> 7 * stored_bytes(shape, scheme)",
            "math.prod(shape) -> shape",
        ],
        "other formats of scales come after this lesson, and both ways count float32's the same",
    ),
    hints=[
        "Count bytes: those of the packed integers, then one scale for each block, then the zero points if there are any. Bits per weight is eight times that, divided by the number of weights.",
        "A row takes ceil(columns * bits / 8) bytes. There is 1 block per tensor, `rows` per row, `columns` per column, "
        "and rows * ceil(columns / group_size) per group. A block keeps 4 bytes, or 5 in asymmetric mode.",
        "`math.ceil` rounds up. Ask `scheme.group_size is not None` first, then whether `scheme.axis` is None, 0 or 1; `4 if scheme.symmetric else 5` is what a block keeps.",
    ],
)

EXERCISES = [BITS_PER_WEIGHT]
