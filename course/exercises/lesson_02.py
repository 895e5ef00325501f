"""Exercises of lesson 2: the range of an integer, two's complement, and the fields of a float."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Property, Value
from qlib.packing import float_fields, from_twos_complement, pack, unpack

# ---------------------------------------------------------------- 02.1 limits

WIDTHS = (16, 32, 64)

LIMITS = Exercise(
    id="02.1",
    name="limits",
    key=Value(
        "[(torch.iinfo(dtype).min, torch.iinfo(dtype).max) for dtype in (torch.int16, torch.int32, torch.int64)]"
    ),
    mistakes=[
        Mistake(
            [(-(2 ** (b - 1)), 2 ** (b - 1)) for b in WIDTHS],
            "with 2**(bits - 1) for the largest; 0 takes one of the codes without a minus, so it is one less",
        ),
        Mistake(
            [(-(2 ** (b - 1)) + 1, 2 ** (b - 1) - 1) for b in WIDTHS],
            "with ends of the same size, as sign and magnitude have them; two's complement goes one further down",
        ),
        Mistake(
            [(-(2 ** (b - 1)) - 1, 2 ** (b - 1) - 1) for b in WIDTHS],
            "with one step too far down: the smallest is -2**(bits - 1)",
        ),
        Mistake([(0, 2**b - 1) for b in WIDTHS], "without a sign: that is the range of uint16, uint32 and uint64"),
        Mistake([(-(2**b), 2**b - 1) for b in WIDTHS], "with all the bits for the digits; one of them is the sign's"),
        Mistake(
            [(-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (8, 16, 32)],
            "for int8, int16 and int32; asked are int16, int32 and int64",
        ),
        Mistake(
            [(2 ** (b - 1) - 1, -(2 ** (b - 1))) for b in WIDTHS],
            "with each pair the wrong way round: the smallest comes first",
        ),
        Mistake(
            [(-(2 ^ (b - 1)), (2 ^ (b - 1)) - 1) for b in WIDTHS],
            "with ^, which is exclusive or in Python; a power is written **",
        ),
        Mistake(
            [end for b in WIDTHS for end in (-(2 ** (b - 1)), 2 ** (b - 1) - 1)],
            "with all six numbers in one flat list; make it three pairs",
        ),
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


def reads_sign_and_magnitude(codes, bits=8):
    codes, half = codes.to(torch.int16), 2 ** (bits - 1)
    return torch.where(codes >= half, half - codes, codes).to(torch.int8)


def reads_ones_complement(codes, bits=8):
    codes = codes.to(torch.int16)
    return torch.where(codes >= 2 ** (bits - 1), codes - (2**bits - 1), codes).to(torch.int8)


def puts_a_minus_before_it(codes, bits=8):
    codes = codes.to(torch.int16)
    return torch.where(codes >= 2 ** (bits - 1), -codes, codes).to(torch.int8)


def reads_an_offset(codes, bits=8):
    return (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def starts_one_too_late(codes, bits=8):
    codes = codes.to(torch.int16)
    return torch.where(codes > 2 ** (bits - 1), codes - 2**bits, codes).to(torch.int8)


def starts_one_too_early(codes, bits=8):
    codes = codes.to(torch.int16)
    return torch.where(codes >= 2 ** (bits - 1) - 1, codes - 2**bits, codes).to(torch.int8)


def takes_every_code_for_8_bits(codes, bits=8):
    return codes.to(torch.int8)


def only_drops_the_top_bit(codes, bits=8):
    return (codes.to(torch.int16) & (2 ** (bits - 1) - 1)).to(torch.int8)


def subtracts_always(codes, bits=8):
    return (codes.to(torch.int16) - 2**bits).to(torch.int8)


def stays_unsigned(codes, bits=8):
    codes = codes.to(torch.uint8)
    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)


def stays_wide(codes, bits=8):
    codes = codes.to(torch.int16)
    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)


def changes_the_codes(codes, bits=8):
    signed = torch.where(codes.short() >= 2 ** (bits - 1), codes.short() - 2**bits, codes.short()).to(torch.int8)
    codes.copy_(signed)
    return signed


def how_decoded(args, index):
    codes, bits = args
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
    ],
    properties=[Property(undoes_packing)],
    mistakes=[
        Mistake(
            reads_sign_and_magnitude, "with the top bit read as a minus before the other bits (sign and magnitude)"
        ),
        Mistake(
            reads_ones_complement, "with ones' complement, which flips the bits and does not add 1: take off 2**bits"
        ),
        Mistake(
            puts_a_minus_before_it,
            "with a minus before the whole code, top bit and all: -(128 + 1) in place of -128 + 1",
        ),
        Mistake(reads_an_offset, "with 2**(bits - 1) taken off every code; small codes stand for themselves"),
        Mistake(starts_one_too_late, "with > for >=: the code 2**(bits - 1) has its top bit set and is negative too"),
        Mistake(
            starts_one_too_early, "with codes taken as negative one too early: 2**(bits - 1) - 1 is still positive"
        ),
        Mistake(takes_every_code_for_8_bits, "with a width of 8 whatever `bits` says"),
        Mistake(only_drops_the_top_bit, "with the top bit dropped; it counts -2**(bits - 1)"),
        Mistake(subtracts_always, "with 2**bits taken off every code; only those with the top bit set lose it"),
        Mistake(
            stays_unsigned,
            "with arithmetic in uint8, where 129 - 256 wraps around to 129: make it a wider, signed dtype first",
        ),
        Mistake(stays_wide, "without the cast to int8 at the end"),
        Mistake(changes_the_codes, "with an operation in place on the codes"),
    ],
    hints=[
        "All bits but the top one count as they always do. What does the top one count, and which codes have it set?",
        "Unsigned, the top bit counts 2**(bits - 1); signed, it counts -2**(bits - 1). So a code that has it set is 2**bits too large.",
        "`torch.where(condition, if_true, if_false)`, on codes made int16 first, since uint8 has no room for a minus; int8 at the end.",
    ],
    explain=how_decoded,
)


# ---------------------------------------------------------------- 02.3 float_fields


def shifts_the_sign_only(tensor):
    bits = tensor.view(torch.int32)
    return bits >> 31, (bits >> 23) & 255, bits & (2**23 - 1)


def leaves_the_sign_in_place(tensor):
    bits = tensor.view(torch.int32)
    return bits & (-(2**31)), (bits >> 23) & 255, bits & (2**23 - 1)


def leaves_the_sign_in_the_exponent(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, bits >> 23, bits & (2**23 - 1)


def takes_the_bias_off(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, ((bits >> 23) & 255) - 127, bits & (2**23 - 1)


def masks_seven_bits(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 127, bits & (2**23 - 1)


def shifts_one_too_far(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 24) & 255, bits & (2**23 - 1)


def adds_the_hidden_one(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, (bits & (2**23 - 1)) | 2**23


def masks_with_a_power_of_two(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, bits & 2**23


def masks_24_bits(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, bits & (2**24 - 1)


def leaves_the_fraction_unmasked(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, bits


def gives_the_fraction_as_a_real(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, (bits & (2**23 - 1)) / 2**23


def swaps_exponent_and_fraction(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, bits & (2**23 - 1), (bits >> 23) & 255


def converts_the_value(tensor):
    bits = tensor.to(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, bits & (2**23 - 1)


def reads_float16_fields(tensor):
    bits = tensor.view(torch.int32)
    return (bits >> 15) & 1, (bits >> 10) & 31, bits & (2**10 - 1)


def takes_less_than_zero_for_the_sign(tensor):
    bits = tensor.view(torch.int32)
    return (tensor < 0).to(torch.int32), (bits >> 23) & 255, bits & (2**23 - 1)


def takes_the_logarithm(tensor):
    bits = tensor.view(torch.int32)
    exponent = torch.floor(torch.log2(tensor.abs().clamp(2.0**-149, 2.0**127))).to(torch.int32) + 127
    return (bits >> 31) & 1, exponent, bits & (2**23 - 1)


FLOAT_FIELDS = Exercise(
    id="02.3",
    name="float_fields",
    key=float_fields,
    cases=[
        Case("[1.0, -6.5, 0.15625]", (torch.tensor([1.0, -6.5, 0.15625]),)),
        Case("a matrix of numbers", (torch.tensor([[0.1, -0.1], [3.14159, -70000.0]]),)),
        Case("[0.0, -0.0]", (torch.tensor([0.0, -0.0]),)),
        Case(
            "the largest number and the two infinities",
            (torch.tensor([2.0**127 * (2 - 2.0**-23), torch.inf, -torch.inf]),),
        ),
        Case("numbers below the smallest normal one", (torch.tensor([2.0**-126, -(2.0**-127), 2.0**-149]),)),
        Case("an empty tensor", (torch.empty(0, 3),)),
    ],
    parts=("sign", "exponent", "fraction"),
    any_integer=("sign", "exponent", "fraction"),
    mistakes=[
        Mistake(
            shifts_the_sign_only,
            "with no mask after the shift: >> keeps the sign of a signed integer, so a set top bit becomes -1",
        ),
        Mistake(leaves_the_sign_in_place, "with a mask but no shift: the bit stays at place 31"),
        Mistake(
            leaves_the_sign_in_the_exponent, "with no mask on the exponent: the sign bit is still to the left of it"
        ),
        Mistake(takes_the_bias_off, "with the bias of 127 taken off; wanted is the exponent as it is stored, 0 to 255"),
        Mistake(masks_seven_bits, "with a mask of seven bits for the exponent; it has eight, 255"),
        Mistake(shifts_one_too_far, "with a shift by 24 for the exponent; there are 23 bits to its right"),
        Mistake(adds_the_hidden_one, "with the hidden 1 put before the fraction; it is not stored"),
        Mistake(masks_with_a_power_of_two, "with 2**23 for the mask, which is one bit; 2**23 - 1 is 23 of them"),
        Mistake(masks_24_bits, "with a mask of 24 bits for the fraction; it has 23, and the next is the exponent's"),
        Mistake(leaves_the_fraction_unmasked, "with no mask on the fraction: sign and exponent are still in it"),
        Mistake(gives_the_fraction_as_a_real, "with the fraction divided by 2**23; wanted are its bits, as an integer"),
        Mistake(
            swaps_exponent_and_fraction, "with exponent and fraction swapped; the order is sign, exponent, fraction"
        ),
        Mistake(
            converts_the_value,
            "with .to(torch.int32), which converts the value and loses its bits; .view(torch.int32) keeps them",
        ),
        Mistake(reads_float16_fields, "with the places and widths of float16; float32 has 1, 8 and 23 bits"),
        Mistake(
            takes_less_than_zero_for_the_sign,
            "with tensor < 0 for the sign: -0.0 is not less than 0, but its sign bit is set",
        ),
        Mistake(
            takes_the_logarithm,
            "with a logarithm for the exponent: it fails on 0 and on numbers below the smallest normal one",
        ),
    ],
    hints=[
        "Look at the same 32 bits as an integer. Then each field is a shift (to bring it to the right end) and a mask.",
        "From the left: 1 bit of sign, 8 of exponent, 23 of fraction. So shift by 31, by 23 and by 0; a mask of n bits is 2**n - 1.",
        "`bits = tensor.view(torch.int32)` keeps the bits and changes only what they mean. Then `(bits >> shift) & mask`, three times.",
    ],
)

EXERCISES = [LIMITS, FROM_TWOS_COMPLEMENT, FLOAT_FIELDS]
