"""Exercises of lesson 2: the range of an integer, two's complement, and the fields of a float."""

import torch

from course.exercises.exercise import Case, Exercise, Property, Value
from course.exercises.mistakes import Mistake, edit
from qlib.packing import float_fields, from_twos_complement, pack, unpack

# ---------------------------------------------------------------- 02.1 limits

WIDTHS = (16, 32, 64)

LIMITS = Exercise(
    id="02.1",
    name="limits",
    key=Value("[(torch.iinfo(dtype).min, torch.iinfo(dtype).max) for dtype in (torch.int16, torch.int32, torch.int64)]"),
    mistakes=[
        Mistake([(-(2 ** (b - 1)), 2 ** (b - 1)) for b in WIDTHS], "with 2**(bits - 1) for the largest; 0 takes one of the codes without a minus, so it is one less"),
        Mistake([(-(2 ** (b - 1)) + 1, 2 ** (b - 1) - 1) for b in WIDTHS], "with ends of the same size, as sign and magnitude have them; two's complement goes one further down"),
        Mistake([(-(2 ** (b - 1)) - 1, 2 ** (b - 1) - 1) for b in WIDTHS], "with one step too far down: the smallest is -2**(bits - 1)"),
        Mistake([(0, 2**b - 1) for b in WIDTHS], "without a sign: that is the range of uint16, uint32 and uint64"),
        Mistake([(-(2**b), 2**b - 1) for b in WIDTHS], "with all the bits for the digits; one of them is the sign's"),
        Mistake([(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (8, 16, 32)], "for int8, int16 and int32; asked are int16, int32 and int64"),
        Mistake([(2 ** (b - 1) - 1, -(2 ** (b - 1))) for b in WIDTHS], "with the largest first in each pair"),
        Mistake([(-(2 ^ (b - 1)), (2 ^ (b - 1)) - 1) for b in WIDTHS], "with ^, which is exclusive or in Python; a power is written **"),
        Mistake([(-2 ^ (b - 1), 2 ^ (b - 1) - 1) for b in WIDTHS], "with ^, which is exclusive or in Python and comes after the minus; a power is written **"),
        Mistake([(-(2 ** (b - 1)), 2**b - 1) for b in WIDTHS], "with the smallest of the signed type and the largest of the unsigned one"),
        Mistake([2 ** (b - 1) - 1 for b in WIDTHS], "with the largest alone; each is a pair, smallest first"),
        Mistake([(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (8, *WIDTHS)], "with int8 as well, which is not asked for"),
        Mistake([(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in WIDTHS[::-1]], "with the widest first; begin with int16"),
        Mistake([end for b in WIDTHS for end in (-(2 ** (b - 1)), 2 ** (b - 1) - 1)], "with all six numbers in one flat list; make it three pairs"),
        Mistake(
            # Equal to what floats give, to the last digit; floats here would match ints that are merely close.
            [(-(2**15), 2**15 - 1), (-(2**31), 2**31 - 1), (-(2**63), 2**63)],
            "with floats: a float has no room for all digits of 2**63 - 1 and rounds it up to 2**63; use ints",
        ),
    ],
    hints=[
        "How many codes do 16 bits have, and how are they shared out between negative numbers, 0 and positive ones?",
        "A signed integer of b bits goes from -2**(b - 1) to 2**(b - 1) - 1.",
        "`torch.iinfo(torch.int16)` knows both ends, as `.min` and `.max`. Make a list of three pairs.",
    ],
)


# ---------------------------------------------------------------- 02.2 from_twos_complement


def how_decoded(args, index):
    codes, bits = (*args, 8)[:2]
    return f"the code {codes[index].item()} is {codes[index].item():0{bits}b} in {bits} bits"


def undoes_packing(answer):
    """Signed values that were packed come back."""
    for bits in range(2, 9):
        values = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(torch.int8)
        back = answer(unpack(pack(values, bits), bits), bits)
        wrong = (back.long() != values.long()).nonzero()
        if len(wrong):
            first = wrong[0].item()
            return f"at {bits} bits, {values[first].item()} was packed, and came back as {back[first].item()}."
    return None


FROM_TWOS_COMPLEMENT = Exercise(
    id="02.2",
    name="from_twos_complement",
    key=from_twos_complement,
    cases=[
        Case("five codes of 8 bits", (torch.tensor([1, 127, 128, 129, 255], dtype=torch.uint8), 8)),
        Case("every code of 4 bits", (torch.arange(16).to(torch.uint8), 4)),
        Case("every code of 2 bits, as int64", (torch.arange(4), 2)),
        Case("every code of 8 bits, in 16 rows", (torch.arange(256).to(torch.uint8).reshape(16, 16), 8)),
        Case("every code of 3 bits, as int32", (torch.arange(8, dtype=torch.int32), 3)),
        Case("an empty tensor", (torch.empty(0, 4, dtype=torch.uint8), 4)),
        Case("five codes, and `bits` not given", (torch.tensor([1, 127, 128, 129, 255], dtype=torch.uint8),)),
    ],
    properties=[Property(undoes_packing)],
    mistakes=[
        Mistake(edit("codes - 2**bits", "2 ** (bits - 1) - codes"), "with the top bit read as a minus before the other bits (sign and magnitude)"),
        Mistake(edit("2**bits", "(2**bits - 1)"), "with ones' complement, which flips the bits and adds no 1"),
        Mistake(edit("codes - 2**bits", "-codes"), "with a minus before the whole code, top bit and all: -(128 + 1) in place of -128 + 1"),
        Mistake(edit("codes - 2**bits", "2**bits - codes"), "with the minus lost: 2**bits - code is how far below 0 it lies"),
        Mistake(edit("2**bits, codes)", "2 ** (bits - 1), codes - 2 ** (bits - 1))"), "with 2**(bits - 1) taken off every code; small codes stand for themselves"),
        Mistake(edit(">=", ">"), "with > for >=: the code 2**(bits - 1) has its top bit set and is negative too"),
        Mistake(edit(">= 2 ** (bits - 1)", ">= 2 ** (bits - 1) - 1"), "with codes taken as negative one too early: 2**(bits - 1) - 1 is still positive"),
        Mistake(edit("codes = codes", "bits, codes = 8, codes"), "with a width of 8 whatever `bits` says"),
        Mistake(edit("- 2**bits", "& 2 ** (bits - 1) - 1"), "with the top bit dropped; it counts -2**(bits - 1)"),
        Mistake(edit(", codes)", ", codes - 2**bits)"), "with 2**bits taken off every code; only those with the top bit lose it"),
        Mistake(edit("2 ** (bits - 1)", "2 ^ (bits - 1)", "2**bits", "(2 ^ bits)"), "with ^, which is exclusive or in Python; a power is written **"),
        Mistake(edit("torch.int16", "torch.uint8", ".to(torch.int8)", ""), "with arithmetic in uint8, where 129 - 256 wraps around to 129: make it a wider, signed dtype first"),
        Mistake(edit("codes - 2**bits, codes", "-codes, -codes"), "with a minus before every code; small codes stand for themselves"),
        Mistake(edit(".to(torch.int8)", ".int()"), "with a cast to int32; int8 is asked for"),
        Mistake(edit(".to(torch.int8)", ""), "without the cast to int8 at the end"),
        Mistake(edit("bits=8", "bits"), "with no default for `bits`; it is 8 where the lesson does not give it"),
        Mistake(
            edit("codes = codes.to(torch.int16)\n    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)", "codes[codes >= 2 ** (bits - 1)] -= 2**bits\n    return codes"),
            "with an operation in place on the codes",
        ),
    ],
    equivalent=dict.fromkeys(
        ("codes, bits=8 -> codes, bits=9", "without: codes = codes.to(torch.int16)", "codes.to(torch.int16) -> codes", "torch.int16 -> torch.int8"),
        "the cast to int8 at the end keeps the low 8 bits, and those are right in any integer dtype",
    ),
    hints=[
        "All bits but the top one count as they always do. What does the top one count, and which codes have it set?",
        "Unsigned, the top bit counts 2**(bits - 1); signed, it counts -2**(bits - 1). So a code that has it set is 2**bits too large.",
        "`torch.where(condition, if_true, if_false)`, on codes made int16 first, since uint8 has no room for a minus; int8 at the end.",
    ],
    explain=how_decoded,
)


# ---------------------------------------------------------------- 02.3 float_fields


FLOAT_FIELDS = Exercise(
    id="02.3",
    name="float_fields",
    key=float_fields,
    cases=[
        Case("[1.0, -6.5, 0.15625]", (torch.tensor([1.0, -6.5, 0.15625]),)),
        Case("a matrix of numbers", (torch.tensor([[0.1, -0.1], [3.14159, -70000.0]]),)),
        Case("[0.0, -0.0]", (torch.tensor([0.0, -0.0]),)),
        Case("the largest number and the two infinities", (torch.tensor([2.0**127 * (2 - 2.0**-23), torch.inf, -torch.inf]),)),
        Case("numbers below the smallest normal one", (torch.tensor([2.0**-126, -(2.0**-127), 2.0**-149]),)),
        Case("an empty tensor", (torch.empty(0, 3),)),
    ],
    parts=("sign", "exponent", "fraction"),
    any_integer=("sign", "exponent", "fraction"),
    mistakes=[
        Mistake(edit(" & 1,", ","), "with no mask after the shift: >> keeps the sign of a signed integer, so a set top bit becomes -1"),
        Mistake(edit("(bits >> 31) & 1", "bits & -(2**31)"), "with a mask but no shift: the bit stays at place 31"),
        Mistake(edit(">> 31", ">> 30"), "with a shift by 30 for the sign; 31 bits lie to its right"),
        Mistake(edit("(bits >> 31) & 1", "torch.signbit(tensor)"), "with True and False for the sign; make it 0 or 1"),
        Mistake(edit("(bits >> 31) & 1", "torch.sign(tensor).int()"), "with torch.sign, which gives 1, 0 or -1; stored is 0 or 1"),
        Mistake(edit("(bits >> 31) & 1", "(tensor < 0).int()"), "with tensor < 0 for the sign: -0.0 is not less than 0, but its sign bit is set"),
        Mistake(edit(" & 255", ""), "with no mask on the exponent: the sign bit is still to the left of it"),
        Mistake(edit("(bits >> 23) & 255", "((bits >> 23) & 255) - 127"), "with the bias of 127 taken off; wanted is the exponent as it is stored, 0 to 255"),
        Mistake(edit("255", "127"), "with a mask of seven bits for the exponent; it has eight, 255"),
        Mistake(edit("& 255", "& 256"), "with 256 for the mask, which is one bit; 255 is eight of them"),
        Mistake(edit(">> 23", ">> 24"), "with a shift by 24 for the exponent; there are 23 bits to its right"),
        Mistake(edit(">> 23", ">> 22"), "with a shift by 22 for the exponent; there are 23 bits to its right"),
        Mistake(
            edit("(bits >> 23) & 255", "torch.floor(torch.log2(tensor.abs().clamp(2.0**-149, 2.0**127))).int() + 127"),
            "with a logarithm for the exponent: it fails on 0 and on numbers below the smallest normal one",
        ),
        Mistake(edit("- 1)", "- 1) | 2**23"), "with the hidden 1 put before the fraction; it is not stored"),
        Mistake(edit("(2**23 - 1)", "2**23"), "with 2**23 for the mask, which is one bit; 2**23 - 1 is 23 of them"),
        Mistake(edit("2**23", "2**24"), "with a mask of 24 bits for the fraction; it has 23"),
        Mistake(edit("2**23", "2**22"), "with a mask of 22 bits for the fraction; it has 23"),
        Mistake(edit(" & (2**23 - 1)", ""), "with no mask on the fraction: sign and exponent are still in it"),
        Mistake(edit("bits & (2**23 - 1)", "(bits & (2**23 - 1)) / 2**23"), "with the fraction divided by 2**23; wanted are its bits, as an integer"),
        Mistake(edit("bits & (", "bits.bitwise_and_("), "with an operation in place: the view shares the tensor's memory"),
        Mistake(edit("(bits >> 23) & 255, bits & (2**23 - 1)", "bits & (2**23 - 1), (bits >> 23) & 255"), "with exponent and fraction swapped; the order is sign, exponent, fraction"),
        Mistake(
            edit("return (bits >> 31) & 1", "return bits & (2**23 - 1)", ", bits & (2**23 - 1)\n", ", (bits >> 31) & 1\n"),
            "in the order fraction, exponent, sign; from the left it is sign, exponent, fraction",
        ),
        Mistake(edit(".view(", ".to("), "with .to(torch.int32), which converts the value and loses its bits; .view(torch.int32) keeps them"),
        Mistake(edit("torch.int32", "torch.uint8"), "with .view(torch.uint8), which reads each number as four"),
        Mistake(edit("return ", "return [", "- 1)\n", "- 1)]\n"), "with a list; return a tuple, with commas alone"),
        Mistake(edit("(bits >> 23) & 255", "bits & (255 << 23)"), "with a mask but no shift for the exponent"),
        Mistake(edit(" & 1,", ",", " & 255", "", " & (2**23 - 1)", ""), "with no masks: what is left of a field stays in it"),
        Mistake(edit("torch.int32", "torch.int64"), "with .view(torch.int64), which reads two numbers as one"),
        Mistake(edit("torch.int32", "torch.int16"), "with .view(torch.int16), which reads each number as two"),
        Mistake(edit("31", "15", ">> 23", ">> 10", "255", "31", "2**23", "2**10"), "with the places and widths of float16; float32 has 1, 8 and 23 bits"),
    ],
    equivalent={"bits >> 31 -> bits >> 32": "a shift past the width leaves nothing but copies of the sign bit, as one by 31 does"},
    hints=[
        "Look at the same 32 bits as an integer. Then each field is a shift (to bring it to the right end) and a mask.",
        "From the left: 1 bit of sign, 8 of exponent, 23 of fraction. So shift by 31, by 23 and by 0; a mask of n bits is 2**n - 1.",
        "`bits = tensor.view(torch.int32)` keeps the bits and changes only what they mean. Then `(bits >> shift) & mask`, three times.",
    ],
)

EXERCISES = [LIMITS, FROM_TWOS_COMPLEMENT, FLOAT_FIELDS]
