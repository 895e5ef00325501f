"""Exercises of lesson 5: symmetric and asymmetric mode."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.affine import full_range_qparams, quant_range, symmetric_qparams

ABSMAX = torch.tensor([[0.77], [3.1], [728.6]])
LOWS = torch.tensor([[-3.1, -0.02, 2.0], [-50.0, -7.0, -0.5]])
HIGHS = torch.tensor([[5.2, 0.07, 9.0], [11.0, -1.0, 0.4]])
ZERO = torch.tensor(0, dtype=torch.int8)


def real(number):
    return torch.tensor(number)


def safe(scale):
    """1 in the place of a zero."""
    return torch.where(scale == 0, 1.0, scale)


# ---------------------------------------------------------------- 05.1 symmetric_qparams


def counts_from_qmin(absmax, bits=8):
    return safe(absmax / 2 ** (bits - 1)), ZERO


def divides_by_qmin(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(absmax / qmin), ZERO


def twice_qmax(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(absmax / (2 * qmax)), ZERO


def all_steps_on_one_side(absmax, bits=8):
    return safe(absmax / (2**bits - 1)), ZERO


def half_of_all_steps(absmax, bits=8):
    return safe(2 * absmax / (2**bits - 1)), ZERO


def both_sides_by_one(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(2 * absmax / qmax), ZERO


def always_127(absmax, bits=8):
    return safe(absmax / 127), ZERO


def upside_down(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return qmax / safe(absmax), ZERO


def leaves_a_scale_of_zero(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return absmax / qmax, ZERO


def adds_an_epsilon(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return absmax / qmax + 1e-8, ZERO


def has_a_smallest_scale(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return (absmax / qmax).clamp(min=1e-8), ZERO


def compares_with_python(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    scale = absmax / qmax if absmax > 0 else torch.ones_like(absmax)
    return scale, ZERO


def one_scale_for_all(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(absmax.max() / qmax), ZERO


def makes_plain_numbers(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return (absmax / qmax).item(), 0


def returns_the_scale_alone(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(absmax / qmax)


def plain_zero(absmax, bits=8):
    return symmetric_qparams(absmax, bits)[0], 0


def float_zero(absmax, bits=8):
    return symmetric_qparams(absmax, bits)[0], torch.tensor(0.0)


def a_zero_for_each_block(absmax, bits=8):
    return symmetric_qparams(absmax, bits)[0], torch.zeros_like(absmax, dtype=torch.int8)


def zero_point_at_qmin(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return symmetric_qparams(absmax, bits)[0], torch.tensor(qmin, dtype=torch.int8)


def scale_comes_second(absmax, bits=8):
    return symmetric_qparams(absmax, bits)[::-1]


def divides_in_place(absmax, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(absmax.div_(qmax)), ZERO


SYMMETRIC_QPARAMS = Exercise(
    id="05.1",
    name="symmetric_qparams",
    key=symmetric_qparams,
    parts=("scale", "zero_point"),
    any_integer=("zero_point",),
    cases=[
        Case("the largest magnitude of the 3x3 matrix, 728.6", (real(728.6),)),
        Case("three blocks in a tensor of shape (3, 1), and bits=8", (ABSMAX,), {"bits": 8}),
        Case("three blocks in a tensor of shape (3, 1), and bits=4", (ABSMAX,), {"bits": 4}),
        Case("three blocks in a tensor of shape (3, 1), and bits=2", (ABSMAX,), {"bits": 2}),
        Case("a block of very small numbers, up to 3e-7", (real(3e-7),)),
        Case("two blocks, the first one all zeros", (torch.tensor([0.0, 2.3]),), {"bits": 3}),
    ],
    mistakes=[
        Mistake(counts_from_qmin, "with 2**(bits - 1) steps; on the positive side there is one fewer, qmax"),
        Mistake(divides_by_qmin, "with qmin in place of qmax, which makes the scale negative"),
        Mistake(twice_qmax, "with 2 * qmax steps; so many lie between -absmax and absmax, half of them above 0"),
        Mistake(all_steps_on_one_side, "with 2**bits - 1 steps; that is all of them, and only qmax lie above 0"),
        Mistake(
            half_of_all_steps,
            "with 2 * absmax over qmax - qmin, as PyTorch's observers have it: absmax then lies half a step beyond qmax",
        ),
        Mistake(
            both_sides_by_one, "with 2 * absmax over qmax; that many steps lie between 0 and absmax, not 2 * absmax"
        ),
        Mistake(always_127, "with 127 whatever the bits; quant_range(bits) gives the right qmax"),
        Mistake(upside_down, "with the division upside down; a scale is reals for one integer, absmax over qmax"),
        Mistake(leaves_a_scale_of_zero, "with no care for a block of zeros: nothing can be divided by its scale of 0"),
        Mistake(adds_an_epsilon, "with a small number added to the scale; it bends the scale of every other block"),
        Mistake(has_a_smallest_scale, "with a lower limit on the scale; blocks of small numbers need less"),
        Mistake(compares_with_python, "with an if, which takes one number and not many; torch.where takes many"),
        Mistake(one_scale_for_all, "with one scale for all blocks; each block has its own absmax and its own scale"),
        Mistake(makes_plain_numbers, "with .item(), which makes plain numbers; stay with tensors"),
        Mistake(
            returns_the_scale_alone, "without the zero point; whoever quantizes still asks for it, so hand back a 0"
        ),
        Mistake(plain_zero, "with a plain 0; torch.tensor(0, dtype=torch.int8) fits where the other mode's fits"),
        Mistake(float_zero, "with a zero point in float32; it is an integer, so give it a dtype"),
        Mistake(a_zero_for_each_block, "with a zero for each block; a single one serves them all and costs nothing"),
        Mistake(zero_point_at_qmin, "with the zero point at qmin; in this mode 0.0 is the integer 0"),
        Mistake(scale_comes_second, "with the two results in the wrong order; the scale comes first"),
        Mistake(divides_in_place, "with an operation in place, one whose name ends in an underscore"),
    ],
    hints=[
        "absmax lies on the largest integer and 0.0 on the integer 0. How many steps are there between the two?",
        "s = absmax / qmax, and z = 0. Where absmax is 0, any scale will do that can be divided by: take 1.",
        "`quant_range(bits)` gives qmin and qmax. `torch.where(s == 0, 1.0, s)` puts a 1 in the place of a 0, and "
        "`torch.tensor(0, dtype=torch.int8)` is the zero point.",
    ],
)


# ---------------------------------------------------------------- 05.2 full_range_qparams


def pick(low, high):
    """The value of the larger magnitude."""
    return torch.where(high > -low, high, low)


def ends_at_qmax(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(pick(low, high) / qmax), ZERO


def always_positive(low, high, bits=8):
    return safe(torch.maximum(-low, high) / 2 ** (bits - 1)), ZERO


def always_negative(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(torch.maximum(-low, high) / qmin), ZERO


def sign_turned_round(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(pick(low, high) / -qmin), ZERO


def high_alone(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(high / qmin), ZERO


def low_alone(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(low / qmin), ZERO


def the_smaller_one(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(torch.where(high > -low, low, high) / qmin), ZERO


def is_symmetric(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(torch.maximum(-low, high) / qmax), ZERO


def steps_of_the_whole_range(low, high, bits=8):
    return safe((high - low) / 2**bits), ZERO


def never_negative(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    scale = pick(low, high) / qmin
    return torch.where(scale <= 0, 1.0, scale), ZERO


def limited_from_below(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return (pick(low, high) / qmin).clamp(min=1e-8), ZERO


def zero_for_a_block_of_zeros(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return pick(low, high) / qmin, ZERO


def always_minus_128(low, high, bits=8):
    return safe(pick(low, high) / -128), ZERO


def the_other_way_up(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return qmin / safe(pick(low, high)), ZERO


def asks_with_if(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe((high if high > -low else low) / qmin), ZERO


def farthest_of_all(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return safe(pick(low.min(), high.max()) / qmin), ZERO


def plain_numbers(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return (pick(low, high) / qmin).item(), 0


def no_zero_point(low, high, bits=8):
    return full_range_qparams(low, high, bits)[0]


def plain_integer_zero(low, high, bits=8):
    return full_range_qparams(low, high, bits)[0], 0


def zero_in_float(low, high, bits=8):
    return full_range_qparams(low, high, bits)[0], torch.tensor(0.0)


def zeros_for_all_blocks(low, high, bits=8):
    return full_range_qparams(low, high, bits)[0], torch.zeros_like(low, dtype=torch.int8)


def shifts_as_well(low, high, bits=8):
    qmin, qmax = quant_range(bits)
    return full_range_qparams(low, high, bits)[0], torch.tensor(qmin, dtype=torch.int8)


FULL_RANGE_QPARAMS = Exercise(
    id="05.2",
    name="full_range_qparams",
    key=full_range_qparams,
    parts=("scale", "zero_point"),
    any_integer=("zero_point",),
    cases=[
        Case("the range of the 3x3 matrix, -184 to 728.6", (real(-184.0), real(728.6))),
        Case("a block that reaches further down than up, from -0.7725 to 0.6508", (real(-0.7725), real(0.6508))),
        Case("six blocks in a tensor of shape (2, 3), and bits=8", (LOWS, HIGHS), {"bits": 8}),
        Case("six blocks in a tensor of shape (2, 3), and bits=4", (LOWS, HIGHS), {"bits": 4}),
        Case("six blocks in a tensor of shape (2, 3), and bits=2", (LOWS, HIGHS), {"bits": 2}),
        Case("a block of very small numbers, from -2e-7 to 3e-7", (real(-2e-7), real(3e-7))),
        Case("two blocks, the first one all zeros", (torch.tensor([0.0, -1.1]), torch.tensor([0.0, 2.3])), {"bits": 3}),
    ],
    mistakes=[
        Mistake(ends_at_qmax, "with qmax in place of qmin; then the code at qmin stays unused, as before"),
        Mistake(always_positive, "with a scale that is never negative: a largest value above 0 then lands beyond qmax"),
        Mistake(
            always_negative, "with a scale that is always negative: a largest value below 0 then lands beyond qmax"
        ),
        Mistake(sign_turned_round, "with the sign turned round: the largest value then lands on -qmin, beyond qmax"),
        Mistake(high_alone, "with high in every block; where low is further from 0, it is low that counts"),
        Mistake(low_alone, "with low in every block; where high is further from 0, it is high that counts"),
        Mistake(the_smaller_one, "with the end that is nearer to 0; take the one that is farther"),
        Mistake(is_symmetric, "with absmax / qmax, which is symmetric mode again"),
        Mistake(steps_of_the_whole_range, "with the width of the range over 2**bits; 0.0 has to be the integer 0"),
        Mistake(never_negative, "with a test for scale <= 0 where you mean scale == 0; a negative scale is right here"),
        Mistake(limited_from_below, "with a lower limit on the scale, which no negative scale survives"),
        Mistake(zero_for_a_block_of_zeros, "with no care for a block of zeros: nothing can be divided by a scale of 0"),
        Mistake(always_minus_128, "with -128 whatever the bits; quant_range(bits) gives the right qmin"),
        Mistake(the_other_way_up, "with the division upside down; a scale is reals for one integer"),
        Mistake(asks_with_if, "with an if, which takes one number and not many; torch.where takes many"),
        Mistake(farthest_of_all, "with one value for all blocks; each block has its own"),
        Mistake(plain_numbers, "with .item(), which makes plain numbers; stay with tensors"),
        Mistake(no_zero_point, "without the zero point; hand back a 0 behind the scale, as in symmetric mode"),
        Mistake(plain_integer_zero, "with a plain 0; make it torch.tensor(0, dtype=torch.int8), as in symmetric mode"),
        Mistake(zero_in_float, "with a zero point in float32; it is an integer, so give it a dtype"),
        Mistake(zeros_for_all_blocks, "with a zero for each block; a single one serves them all"),
        Mistake(shifts_as_well, "with a zero point at qmin; the scale alone does it, and 0.0 stays the integer 0"),
    ],
    hints=[
        "Of each block's two ends, which one is farther from 0? That one goes on qmin, with its sign.",
        "m = high where high > -low, else low; s = m / qmin, or 1 where m is 0; z = 0. Because qmin is negative, s is "
        "negative where m is positive, and that is meant.",
        "`torch.where(condition, a, b)` picks from a or b block by block, for m as well as for the 1 in the place of "
        "a scale that == 0. `quant_range(bits)` gives qmin.",
    ],
)

EXERCISES = [SYMMETRIC_QPARAMS, FULL_RANGE_QPARAMS]
