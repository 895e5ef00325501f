"""Exercises of lesson 16: unpacking 2-bit weights, and a layer that computes from them."""

import torch

from course.exercises.exercise import Case, Exercise, Property
from course.exercises.lesson_15 import runs_as_long_for_many_values_as_for_few
from course.exercises.mistakes import Mistake, edit
from qlib.affine import quant_range
from qlib.linear import packed_linear
from qlib.packing import pack, unpack

# ---------------------------------------------------------------- 16.1 unpack

COURSE = torch.tensor([177, 255], dtype=torch.uint8)
FIVE = torch.tensor([177, 3], dtype=torch.uint8)
THREES = torch.tensor([193, 244, 210], dtype=torch.uint8)
NIBBLES = torch.tensor([0xE5, 0x39, 0x7C, 0x01], dtype=torch.uint8)
# Multiples of 37: every residue occurs, in no order.
MIXED = (torch.arange(60) * 37 % 251).to(torch.uint8)


def where_it_is(args, index):
    """Where the right value stands, in words."""
    packed, bits, *_ = args
    place, offset = divmod(index[-1] * bits, 8)
    first = packed[(*index[:-1], place)].item()
    across = f" and goes on in byte {place + 1}" if offset + bits > 8 else ""
    return f"this value begins in byte {place}, {first:08b}, at offset {offset}{across}"


# What the mistakes change most: where the bytes come in, what holds eight values, and where a row is cut.
BYTES, GROUPS, PAD = ("torch.as_tensor(packed, dtype=torch.uint8)", ".unflatten(-1, (-1, bits))", "-packed.shape[-1] % bits")
WORD, VALUE, CUT = "octets[..., i].long()", "(word >> (i * bits)) & (2**bits - 1)", ".flatten(-2)[..., :count]"
BYTE_BY_BYTE = (GROUPS, ".unsqueeze(-1)", "range(bits)", "range(1)", PAD, "0", "range(8)]", "range(8 // bits)]")

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
        Mistake(edit("(i * bits)", "((i ^ 8 // bits - 1) * bits)"), "with the first value in the highest bits; ours begins with the lowest"),
        Mistake(edit(" & (2**bits - 1)", ""), "with no mask: the values above it come along; keep the `bits` lowest bits after the shift"),
        Mistake(edit(VALUE, "(word & (2**bits - 1)) >> (i * bits)"), "with the mask before the shift: only value 0 is left, and is shifted out"),
        Mistake(edit("2**bits - 1", "2**bits"), "with the mask 2**bits, a single 1; the mask is 2**bits - 1"),
        Mistake(edit("2**bits - 1", "2 ** (bits - 1)"), "with the mask 2**(bits - 1), a single 1; the mask is 2**bits - 1"),
        Mistake(edit("2**bits - 1", "bits"), "with `bits` itself as the mask; the mask is 2**bits - 1"),
        Mistake(edit("2**bits - 1", "3"), "with the mask 3, which is that of 2 bits; the mask is 2**bits - 1"),
        Mistake(edit(VALUE, "word & ((2**bits - 1) << (i * bits))"), "when each value stays where it stands in its byte; shift it to the bottom"),
        Mistake(edit("(i * bits)", "i"), "with a shift by the value's index; each value takes `bits` places, not one"),
        Mistake(edit(VALUE, "word << (i * bits)"), "with a shift to the left; that is for packing"),
        Mistake(edit(f"torch.stack(eight, dim=-1){CUT}", "packed & (2**bits - 1)"), "with one value for each byte; a byte holds several"),
        Mistake(edit("    octets =", "    bits = 2\n    octets ="), "with 2 bits, whatever `bits` says"),
        Mistake(edit("= held if count is None else count", "= held"), "when the values that fill up the last byte stay; cut each row at `count`"),
        Mistake(edit("held if count", "packed.shape[-1] if count"), "with the number of bytes for the number of values"),
        Mistake(edit("packed.shape[-1] * 8 // bits", "-(-packed.shape[-1] * 8 // bits)"), "with the number of values rounded up; a value that lacks some of its bits is none"),
        Mistake(edit("packed.shape[-1] * 8 // bits", "packed.shape[-1] * (8 // bits)"), "with 8 // bits values counted for each byte; the row has shape[-1] * 8 bits, so divide last"),
        Mistake(edit(":count]", "-count:]"), "when what is too many is dropped at the front; the filling is at the end"),
        Mistake(edit("[..., :count]", "[:count]"), "when the first dimension is cut at `count`; the values of a row are in the last one"),
        Mistake(edit("    count = held if count is None else count\n    if", "    if count is not None and"), "when without a count the zeros stay that make whole eights of the values"),
        Mistake(edit("[..., :count]", ""), "with no cut at all: what fills up the last byte stays, and so does what makes whole eights"),
        Mistake(edit(f"torch.nn.functional.pad(packed, (0, {PAD}))", "packed"), "with an error where the bytes make no whole eights of values; fill up with zeros"),
        Mistake(edit(f"(0, {PAD})", f"({PAD}, 0)"), "with the zero bytes put before the row; they go after it"),
        Mistake(edit("    count = held if count is None else count\n", ""), "when `count` is None, as it is by default, and is used as a number"),
        Mistake(edit(*BYTE_BY_BYTE, "dim=-1", "dim=-2"), "with the first values of all bytes before the second ones; a byte's values stay together"),
        Mistake(edit("dim=-1", "dim=-2"), "with the first values of all groups before the second ones; a group's values stay together"),
        Mistake(edit(":count]", ":count].flatten()"), "when the rows become one; only the last dimension changes"),
        Mistake(edit(".flatten(-2)", ".flatten()"), "with `flatten()` for `flatten(-2)`: the rows become one, and their values are cut together"),
        Mistake(edit(BYTES, "packed.flatten()"), "with all rows read as one; each row begins with a byte of its own"),
        Mistake(edit(BYTES, "packed.movedim(0, -1)", ":count]", ":count].movedim(-1, 0)"), "with the bytes of a column read together; unpack along the last dimension"),
        Mistake(edit(BYTES, "packed.flip(-1)"), "with the bytes in reversed order; the first values are in byte 0"),
        Mistake(edit(":count]", ":count].flip(-1)"), "with the values in reversed order"),
        Mistake(edit("(8 * i)", "(8 * (bits - 1 - i))"), "with the bytes of a group joined highest first; byte 0 is the lowest"),
        Mistake(edit("(8 * i)", "(bits * i)"), "with the bytes of a group joined `bits` places apart; each takes 8 of them"),
        Mistake(edit("word |=", "word ="), "when of the bytes of a group only the last stays; join them with |"),
        Mistake(edit("range(8)]", "range(8 // bits)]"), "with 8 // bits values read from a group of bytes; it holds eight"),
        Mistake(edit(*BYTE_BY_BYTE), "with 8 // bits values in each byte; at 3 bits a value goes on in the next"),
        Mistake(edit("word >> (i * bits)", "octets[..., i * bits // 8].long() >> (i * bits % 8)"), "when of a value that goes on in the next byte those bits are lost"),
        Mistake(edit(".long()", ""), "with bytes joined in uint8, where only the first has room; make them int64"),
        Mistake(edit("torch.int64", "torch.int32", ".long()", ".int()"), "with bytes joined in int32: from 5 bits on eight values do not fit; take int64"),
        Mistake(
            edit(
                f"    return torch.stack(eight, dim=-1){CUT}",
                f"    row = torch.stack(eight, dim=-1){CUT}\n    return torch.tensor([int(value) for value in row.flatten()], dtype=row.dtype).view(row.shape)",
            ),
            "with a Python loop over the values, one after the other",
        ),
        Mistake(edit("- 1)).to(torch.uint8)", "- 1) ^ 2 ** (bits - 1)).sub(2 ** (bits - 1)).to(torch.int8)"), "with the top bit read as a sign; the codes count from 0, and are uint8"),
        Mistake(edit("- 1)).to(torch.uint8)", "- 1)).sub(2 ** (bits - 1)).to(torch.int8)"), "with the offset taken off; that comes later, the codes are from 0 on, in uint8"),
        Mistake(edit("- 1)).to(torch.uint8)", "- 1))"), "with a result that takes 8 bytes for each value; return uint8"),
    ],
    equivalent=dict.fromkeys(
        [
            "without: packed = torch.as_tensor(packed, dtype=torch.uint8)",
            "torch.as_tensor(packed, dtype=torch.uint8) -> packed",
            "torch.as_tensor(packed, dtype=torch.uint8) -> torch.as_tensor(packed)",
            "torch.uint8 -> torch.int16",
        ],
        "the bytes are a tensor of uint8 already",
    )
    | {"without: if count > held:": "no more values are asked for than there are"},
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


ONE_HOT = torch.eye(8).bfloat16()  # each sum has one summand: what is rounded is the weight, and nothing else


def how_summed(args, index):
    x, *weight = args[:6]
    row = packed_linear(torch.eye(x.shape[-1]), *weight)[:, index[-1]]
    bias = args[6] if len(args) > 6 else None
    plus = "" if bias is None else f", and the bias is {bias[index[-1]].item():g}"
    return f"the weights of this output are [{', '.join(f'{w:g}' for w in row.tolist())}]{plus}"


REAL, SPREAD = "dequantize(values, scale, zero_point)", "expand_groups(part, values, group_size)"
LINEAR = "torch.nn.functional.linear(x, weight, bias)"

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
        Case("4 inputs, 4 outputs, 3 bits, groups of 2 and a batch of 2 x 2", (X_4, packed_of(SQUARE, 3), SCALE_SQUARE, ZERO_SQUARE, 3, 2)),
        Case("3 inputs, 8 bits and one group a row", (X_4[0, :, :3], packed_of(LARGE, 8), SCALE_2[:, :1], torch.tensor([[-3], [100]], dtype=torch.int8), 8, 3)),
        Case("an input and a bias of bfloat16", (X_8.bfloat16(), *TWO_BIT, BIAS_2.bfloat16())),
        Case("bfloat16 and scales of three decimals", (ONE_HOT, TWO_BIT[0], SCALE_2 * 0.603, ZERO_2, 2, 4)),
    ],
    mistakes=[
        Mistake(edit(" + qmin", ""), "when the codes are taken for the integers; the code 0 stands for the smallest one, -2 at 2 bits"),
        Mistake(edit("+ qmin", "- qmin"), "with the offset added to the codes; quant_range(bits)[0] is negative, and is what to add"),
        Mistake(edit("qmin, _", "_, qmax", "+ qmin", "- qmax"), "with the codes counted from -qmax; the smallest integer is one lower"),
        Mistake(
            edit("unpack(packed, bits, x.shape[-1]).to(torch.int16)", "(unpack(packed, bits, x.shape[-1]).to(torch.int16) ^ -qmin)"),
            "when the top bit of a code is read as a sign; the codes count from the smallest integer",
        ),
        Mistake(edit(".to(torch.int16)", ""), "when the offset is taken off in uint8: 0 - 2 is 254 there; make the codes signed first"),
        Mistake(edit(REAL, "(scale * (values.to(torch.int8) - zero_point))"), "with the zero point taken off in int8, where 127 - (-3) does not fit and wraps around"),
        Mistake(edit(REAL, "(scale * values - zero_point)"), "with the zero point taken off after the scale; it counts in steps, so it goes first"),
        Mistake(edit("zero_point).to", "-zero_point).to"), "with the zero point added; it is taken off"),
        Mistake(edit("zero_point).to", "0).to"), "without the zero point"),
        Mistake(edit("(values, scale", "(values, 1.0"), "without the scales"),
        Mistake(edit("(values, scale", "(values, 1 / scale"), "with a division by the scales; they turn steps into numbers, so multiply"),
        Mistake(edit(SPREAD, "part[:, :1]"), "with the first group's scale and zero point for the whole row"),
        Mistake(edit(SPREAD, "part.repeat(1, group_size)[:, : x.shape[-1]]"), "with the groups' scales dealt out in turn (repeat); a scale stays for a whole group (repeat_interleave)"),
        Mistake(edit("(part,", "(part.reshape(part.shape[::-1]).T,"), "with the scales' rows and columns mixed up; they are of shape (outputs, groups)"),
        Mistake(edit(SPREAD, "part.repeat_interleave(x.shape[-1] // part.shape[1], dim=1)"), "with inputs // groups columns in a group; go by group_size, for the last one may be shorter"),
        Mistake(edit(SPREAD, "part.repeat_interleave(group_size, dim=1)"), "with scales for more columns than there are; the last group may be shorter, so cut at the inputs"),
        Mistake(edit("(packed, bits", "(packed, 2", "range(bits)", "range(2)"), "with 2 bits, whatever `bits` says"),
        Mistake(edit(", x.shape[-1])", ")"), "when the codes that fill up the last byte stay; a row has x.shape[-1] of them"),
        Mistake(edit(LINEAR, "x @ weight + (0 if bias is None else bias)"), "without the transposition; the weight is (outputs, inputs)"),
        Mistake(
            edit(REAL, "(values - zero_point)", "linear(x, weight, bias)", "linear(x, weight) * scale[:, 0].to(x.dtype) + (0 if bias is None else bias)"),
            "with one scale on the finished sums; the groups of a row have different ones, so scale the weights",
        ),
        Mistake(edit(", bias)", ")"), "without the bias"),
        Mistake(edit("weight, bias)", "weight) + bias"), "when the bias is None and is added all the same"),
        Mistake(edit("weight, bias)", "weight, bias if bias else None)"), "with `if bias`; ask `if bias is not None`"),
        Mistake(edit("weight, bias)", "weight, None if bias is None else bias * scale[:, 0].to(bias.dtype))"), "with the scale on the bias as well"),
        Mistake(edit(".to(x.dtype)", ""), "with a float32 weight on an input of another dtype; cast the weight to x.dtype"),
        Mistake(edit("linear(x, weight, bias)", "linear(x.float(), weight.float(), None if bias is None else bias.float())"), "with a result in float32; it should have the dtype of x"),
        Mistake(edit(REAL, "(scale.to(x.dtype) * (values - zero_point))"), "with the weights calculated in the dtype of x; calculate them in float32, and cast them then"),
        Mistake(
            edit("bias=None):", "bias=None, kept={}):", REAL, f"kept.setdefault((packed.shape, bits), {REAL})"),
            "when the unpacked weight is kept from one call to the next; unpack at every call, and keep nothing",
        ),
        Mistake(edit(" + qmin", "", "    scale, zero_point", "    zero_point -= qmin\n    scale, zero_point"), "with an operation in place on the zero point, which is the layer's own"),
    ],
    equivalent={"torch.int16 -> torch.int8": "a code that int8 cannot hold wraps round, and adding qmin wraps it back"},
    hints=[
        "Four steps: bytes to codes, codes to integers, integers to real numbers, and a matrix product. You have written each of them before.",
        "codes = unpack, as many in a row as x has inputs; q = code + qmin, in a dtype that holds negative numbers; "
        "w = s (q - z), where each group's s and z are repeated for the columns of the group; then y = x wᵀ + b.",
        "`scale.repeat_interleave(group_size, dim=1)[:, :inputs]` spreads the scales, and the same the zero points. "
        "`quant_range(bits)[0]` is qmin. `torch.nn.functional.linear(x, weight, bias)` wants all three in one dtype.",
    ],
    explain=how_summed,
)

EXERCISES = [UNPACK, PACKED_LINEAR]
