"""Exercises of lesson 5: symmetric and asymmetric mode."""

import torch

from course.exercises.exercise import Case, Exercise
from course.exercises.lesson_04 import real, small_scales
from course.exercises.mistakes import Mistake, edit
from qlib.affine import full_range_qparams, symmetric_qparams

ABSMAX = torch.tensor([[0.77], [3.1], [728.6]])
LOWS = torch.tensor([[-3.1, -0.02, 2.0], [-50.0, -7.0, -0.5]])
HIGHS = torch.tensor([[5.2, 0.07, 9.0], [11.0, -1.0, 0.4]])

# Parts of the keys that several mistakes change.
FARTHEST = "torch.where(high > -low, high, low)"
ZERO_POINT = ", torch.tensor(0, dtype=torch.int8)"

# The two keys end alike, and so do the mistakes in what stands there.
SHARED_MISTAKES = [
    Mistake(edit("nonzero_scale", ""), "with no care for a block of zeros: nothing can be divided by its scale of 0"),
    Mistake(edit(", torch.tensor(0", ".double(), torch.tensor(0"), "with a scale in float64; float32 is asked for"),
    Mistake(edit(", torch.tensor(0", ".round(), torch.tensor(0"), "with a rounded scale; it is a real number"),
    Mistake(edit(ZERO_POINT, ".item(), 0"), "with .item(), which makes plain numbers; stay with tensors"),
    Mistake(edit(ZERO_POINT, ""), "without the zero point; whoever quantizes still asks for it, so hand back a 0"),
    Mistake(edit("torch.tensor(0, dtype=torch.int8)", "0"), "with a plain 0; torch.tensor(0, dtype=torch.int8) fits where asymmetric mode's fits"),
    Mistake(edit("0, dtype=torch.int8", "0.0"), "with a zero point in float32; it is an integer, so give it a dtype"),
    Mistake(edit(", dtype=torch.int8", ""), "with a zero point in int64, as torch.tensor(0) makes it; int8 is asked for"),
    Mistake(edit("torch.int8", "torch.int32"), "with a zero point in int32; int8 is asked for"),
    Mistake(edit("tensor(0,", "tensor([0],"), "with a zero point of shape (1,); a single number has the shape ()"),
    Mistake(edit("tensor(0", "tensor(qmin"), "with the zero point at qmin; here 0.0 is the integer 0"),
    Mistake(edit("return ", "return (", "int8)", "int8))[::-1]"), "with the two results in the wrong order; the scale comes first"),
]


# ---------------------------------------------------------------- 05.1 symmetric_qparams


SYMMETRIC_QPARAMS = Exercise(
    id="05.1",
    name="symmetric_qparams",
    key=symmetric_qparams,
    parts=("scale", "zero_point"),
    cases=[
        Case("the largest magnitude of the 3x3 matrix, 728.6", (real(728.6),)),
        Case("three blocks in a tensor of shape (3, 1), and bits=8", (ABSMAX,), {"bits": 8}),
        Case("three blocks in a tensor of shape (3, 1), and bits=4", (ABSMAX,), {"bits": 4}),
        Case("three blocks in a tensor of shape (3, 1), and bits=2", (ABSMAX,), {"bits": 2}),
        Case("a block of very small numbers, up to 3e-7", (real(3e-7),)),
        Case("two blocks, the first one all zeros", (torch.tensor([0.0, 2.3]),), {"bits": 3}),
        Case("a block of zeros", (real(0.0),)),
    ],
    mistakes=[
        Mistake(edit("/ qmax", "/ 2 ** (bits - 1)"), "with 2**(bits - 1) steps; above 0 there is one fewer, qmax"),
        Mistake(edit("/ qmax", "/ qmin"), "with qmin in place of qmax, which makes the scale negative"),
        Mistake(edit("/ qmax", "/ (2 * qmax)"), "with 2 * qmax steps; so many lie from -absmax to absmax, half of them above 0"),
        Mistake(edit("/ qmax", "/ (2**bits - 1)"), "with 2**bits - 1 steps; that is all, and only qmax lie above 0"),
        Mistake(edit("/ qmax", "/ 2**bits"), "with 2**bits steps; that is all the integers, and only qmax lie above 0"),
        Mistake(edit("quant_range(bits)", "quant_range(8)"), "with 127 whatever the bits; quant_range(bits) gives qmax"),
        Mistake(edit("absmax / qmax", "2 * absmax / (qmax - qmin)"), "with 2 * absmax over qmax - qmin, as PyTorch's observers have it: absmax then lies half a step beyond qmax"),
        Mistake(edit("absmax / qmax", "2 * absmax / qmax"), "with 2 * absmax over qmax; that many steps lie between 0 and absmax, not 2 * absmax"),
        Mistake(edit("absmax / qmax", "absmax * qmax"), "with a multiplication; the reals are shared out among qmax steps"),
        Mistake(edit("absmax / qmax", "qmax / absmax"), "with the division upside down; a scale is reals for one integer"),
        Mistake(edit("nonzero_scale(absmax / qmax)", "nonzero_scale(absmax) / qmax"), "with 1 in the place of an absmax of 0; it is the scale that becomes 1"),
        Mistake(edit("nonzero_scale(absmax / qmax)", "(absmax / qmax if absmax > 0 else torch.ones(()))"), "with an if, which takes one number and not many; torch.where takes many"),
        Mistake(edit("(absmax /", "(absmax.max() /"), "with one scale for all blocks; each block has its own absmax and its own scale"),
        Mistake(edit("tensor(0", "zeros_like(absmax"), "with a zero for each block; a single one serves them all"),
        Mistake(edit("absmax / qmax", "absmax.div_(qmax)"), "with an operation in place, whose name ends in an underscore"),
        *small_scales("blocks of small numbers need less"),
        *SHARED_MISTAKES,
    ],
    hints=[
        "absmax lies on the largest integer and 0.0 on the integer 0. How many steps are there between the two?",
        "s = absmax / qmax, and z = 0. Where absmax is 0, any scale will do that can be divided by: take 1.",
        "`quant_range(bits)` gives qmin and qmax. `torch.where(s == 0, 1.0, s)` puts a 1 in the place of a 0, and `torch.tensor(0, dtype=torch.int8)` is the zero point.",
    ],
)


# ---------------------------------------------------------------- 05.2 full_range_qparams


FULL_RANGE_QPARAMS = Exercise(
    id="05.2",
    name="full_range_qparams",
    key=full_range_qparams,
    parts=("scale", "zero_point"),
    cases=[
        Case("the range of the 3x3 matrix, -184 to 728.6", (real(-184.0), real(728.6))),
        Case("a block that reaches further down than up, from -0.7725 to 0.6508", (real(-0.7725), real(0.6508))),
        Case("six blocks in a tensor of shape (2, 3), and bits=8", (LOWS, HIGHS), {"bits": 8}),
        Case("six blocks in a tensor of shape (2, 3), and bits=4", (LOWS, HIGHS), {"bits": 4}),
        Case("six blocks in a tensor of shape (2, 3), and bits=2", (LOWS, HIGHS), {"bits": 2}),
        Case("a block of very small numbers, from -2e-7 to 3e-7", (real(-2e-7), real(3e-7))),
        Case("two blocks, the first one all zeros", (torch.tensor([0.0, -1.1]), torch.tensor([0.0, 2.3])), {"bits": 3}),
        Case("a block of zeros", (real(0.0), real(0.0))),
    ],
    mistakes=[
        Mistake(edit("/ qmin", "/ qmax"), "with qmax in place of qmin; then the code at qmin stays unused, as before"),
        Mistake(edit("/ qmin", "/ -qmin"), "with the sign turned round: the largest value lands on -qmin, beyond qmax"),
        Mistake(edit("quant_range(bits)", "quant_range(8)"), "with -128 whatever the bits; quant_range(bits) gives qmin"),
        Mistake(edit("/ qmin", "/ 2**bits"), "with 2**bits steps; on the side of m there are only half as many"),
        Mistake(edit(FARTHEST, "-torch.maximum(-low, high)"), "with a scale that is never negative: a largest value above 0 then lands beyond qmax"),
        Mistake(edit(FARTHEST, "torch.maximum(-low, high)"), "with a scale that is always negative: a largest value below 0 then lands beyond qmax"),
        Mistake(edit(FARTHEST, "high"), "with high in every block; where low is further from 0, it is low that counts"),
        Mistake(edit(FARTHEST, "low"), "with low in every block; where high is further from 0, it is high that counts"),
        Mistake(edit("high > -low", "low >= 0"), "with low wherever it is negative; take the end that is farther from 0"),
        Mistake(edit("high > -low", "high.max() > -low.min()"), "with one side for all blocks; each block has its own"),
        Mistake(edit("-low, high, low", "low.abs_(), high, -low"), "with an operation in place, whose name ends in an underscore"),
        Mistake(edit("nonzero_scale(farthest / qmin)", "nonzero_scale(farthest) / qmin"), "with 1 in the place of an m of 0; it is the scale that becomes 1"),
        Mistake(edit("high > -low", "high < -low"), "with the end that is nearer to 0; take the one that is farther"),
        Mistake(edit(FARTHEST, "torch.maximum(-low, high)", "/ qmin", "/ qmax"), "with absmax / qmax, which is symmetric mode again"),
        Mistake(edit("farthest / qmin", "(high - low) / 2**bits"), "with the width of the range over 2**bits; 0.0 has to be the integer 0"),
        Mistake(edit("farthest / qmin", "qmin / farthest"), "with the division upside down; a scale is m over qmin"),
        Mistake(edit("nonzero_scale(", "(lambda scale: torch.where(scale <= 0, 1.0, scale))("), "with a test for scale <= 0 where you mean scale == 0; a negative scale is right here"),
        Mistake(edit(FARTHEST, "high if high > -low else low"), "with an if, which takes one number and not many; torch.where takes many"),
        Mistake(edit("farthest = torch", "low, high = low.min(), high.max()\n    farthest = torch"), "with one value for all blocks; each block has its own"),
        Mistake(edit("tensor(0", "zeros_like(low"), "with a zero for each block; a single one serves them all"),
        *small_scales("no negative scale is above it"),
        *SHARED_MISTAKES,
    ],
    equivalent={"high > -low -> high >= -low": "where both ends are equally far from 0, either may be taken"},
    hints=[
        "Of each block's two ends, which one is farther from 0? That one goes on qmin, with its sign.",
        "m = high where high > -low, else low; s = m / qmin, or 1 where m is 0; z = 0. Because qmin is negative, s is negative where m is positive, and that is meant.",
        "`torch.where(condition, a, b)` picks from a or b block by block, for m as well as for the 1 in the place of a scale that == 0. `quant_range(bits)` gives qmin.",
    ],
)

EXERCISES = [SYMMETRIC_QPARAMS, FULL_RANGE_QPARAMS]
