"""Exercises of lesson 7: per channel quantization."""

import torch

from course.exercises.exercise import Case, Exercise
from course.exercises.mistakes import Mistake, edit
from qlib.affine import channel_range, choose_qparams
from qlib.scheme import Scheme

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
SPREAD = torch.linspace(-0.77, 0.65, 64).reshape(4, 16)
# Multiples of 37 modulo 101: numbers in no order, so that no channel has its extremes where another has.
MIXED = (torch.arange(48) * 37 % 101 - 40) / 16


# ---------------------------------------------------------------- 07.1 channel_range

OTHERS = "[dim for dim in range(tensor.ndim) if dim != axis]"


def ends(low, high=None):
    """An Edit that finds low in another way, and high in that way or its own."""
    high = high or low.replace("min", "max")
    return edit("tensor.amin(others, keepdim=True)", low, "tensor.amax(others, keepdim=True)", high)


CHANNEL_RANGE = Exercise(
    id="07.1",
    name="channel_range",
    key=channel_range,
    parts=("low", "high"),
    cases=[
        Case("the first two rows of the 3x3 matrix and axis 0", (MATRIX[:2], 0)),
        Case("the first two rows of the 3x3 matrix and axis 1", (MATRIX[:2], 1)),
        Case("numbers from 100 to 103 and axis 0", (torch.tensor([[100.0, 101.5], [103.0, 102.0]]), 0)),
        Case("a tensor of shape (2, 4, 6) and axis 1", (MIXED.reshape(2, 4, 6), 1)),
        Case("a tensor of shape (4, 3, 2, 2), like a convolution's weight, and axis 0", (MIXED.reshape(4, 3, 2, 2), 0)),
    ],
    mistakes=[
        Mistake(edit("!= axis", "== axis"), "when you reduce the very dimension that should stay; reduce the others"),
        Mistake(ends("tensor.amin(axis)"), "when you reduce `axis` itself; reduce the others, with keepdim=True"),
        Mistake(ends("tensor.amin(others)"), "without keepdim=True; what is left does not line up with the tensor"),
        Mistake(edit("!= axis", "!= 0"), "with the range of each row, whatever the axis"),
        Mistake(edit("!= axis", "!= 1"), "with the range of each column, whatever the axis"),
        Mistake(edit(OTHERS, "-1"), "when the last dimension is reduced, whatever the axis"),
        Mistake(ends("tensor.amin()"), "with the range of the whole tensor; each channel has its own"),
        Mistake(edit(" if dim != axis", ""), "when every dimension is reduced; the one that `axis` names has to stay"),
        Mistake(edit(OTHERS, "1 - axis"), "with `1 - axis`, which works for two dimensions; reduce all the others"),
        Mistake(ends("tensor.min(1 - axis, keepdim=True)"), "with .min(dim), which returns positions as well; .amin gives the values alone"),
        Mistake(ends("tensor.min(axis)"), "with .min(axis): it returns positions as well, and it reduces the very dimension that should stay"),
        Mistake(ends("tensor.amin(others).reshape(-1, 1)"), "with shape (channels, 1), which lines up for axis 0 alone"),
        Mistake(
            ends("tensor.reshape(tensor.shape[axis], -1).amin(1).reshape(tensor.amin(others, keepdim=True).shape)"),
            "with reshape(channels, -1), which cuts the numbers in the order they are stored; that fits axis 0 alone",
        ),
        Mistake(ends("tensor.reshape(tensor.shape[axis], -1).amin(1, keepdim=True)"), "with reshape(channels, -1) and a column of results; both fit axis 0 alone"),
        Mistake(edit("return tensor.amin(", "return -tensor.abs().amax(", ", tensor.amax", ", tensor.abs().amax"), "with the largest magnitude on both sides; low and high are two different numbers"),
        Mistake(edit("tensor.amin", "tensor.abs().amin", "tensor.amax", "tensor.abs().amax"), "with abs() first, which loses the sign; low may be negative"),
        Mistake(edit("amin", "swapped", "amax", "amin", "swapped", "amax"), "with low and high swapped"),
        Mistake(edit("amin", "amax"), "with the largest value twice; low is the smallest, .amin"),
        Mistake(
            ends("tensor.amin(others, keepdim=True).clamp(max=0)", "tensor.amax(others, keepdim=True).clamp(min=0)"), "with a range widened to hold 0; asymmetric_qparams does that when it is its turn"
        ),
        Mistake(edit(", tensor.amax(others, keepdim=True)", ""), "with the low end alone; return (low, high)"),
        Mistake(ends("tensor.min(others, keepdim=True)"), "with .min, which takes a single dimension; .amin takes several"),
        Mistake(ends("tensor.min(axis, keepdim=True)"), "with .min(axis, keepdim=True), which returns positions as well, and reduces `axis` itself"),
        Mistake(edit("return tensor.amin", "return torch.stack((tensor.amin", "amax(others, keepdim=True)", "amax(others, keepdim=True)))"), "with low and high stacked in one tensor; return two"),
    ],
    hints=[
        "A channel is a slice along `axis`. Everything but that dimension is reduced to its smallest and its largest value, and stays in the shape as a 1.",
        "For a matrix and axis 0 that is the minimum over dimension 1, for axis 1 over dimension 0; in general, over all dimensions d with d ≠ axis.",
        "`tensor.amin` takes a list of dimensions and keepdim=True. Make the list first: every `dim` in `range(tensor.ndim)` that is not the axis.",
    ],
)


# ---------------------------------------------------------------- 07.2 choose_qparams

ABSMAX = "torch.maximum(-low, high)"


def channels(axis, otherwise=""):
    """An Edit that takes the range of channels along `axis`."""
    return edit("block_range(", "channel_range(", ", scheme)\n", f", {axis}) {otherwise}\n")


CHOOSE_QPARAMS = Exercise(
    id="07.2",
    name="choose_qparams",
    key=choose_qparams,
    parts=("scale", "zero_point"),
    any_integer=("zero_point",),
    cases=[
        Case("the 3x3 matrix, 8 bits, symmetric, per row", (MATRIX, Scheme(8, axis=0))),
        Case("the 3x3 matrix, 8 bits, symmetric, per column", (MATRIX, Scheme(8, axis=1))),
        Case("the 3x3 matrix, 8 bits, symmetric, per tensor", (MATRIX, Scheme(8, axis=None))),
        Case("the 3x3 matrix, 8 bits, asymmetric, per row", (MATRIX, Scheme(8, symmetric=False, axis=0))),
        Case("numbers from -0.77 to 0.65, 4 bits, asymmetric, per column", (SPREAD, Scheme(4, symmetric=False, axis=1))),
        Case("numbers from -0.77 to 0.65, 4 bits, symmetric, per row", (SPREAD, Scheme(4, axis=0))),
        Case("bfloat16, 8 bits, symmetric, per row", (SPREAD.bfloat16(), Scheme(8, axis=0))),
        Case("bfloat16, 3 bits, asymmetric, per tensor", (SPREAD.bfloat16(), Scheme(3, symmetric=False, axis=None))),
    ],
    mistakes=[
        Mistake(edit("not scheme.symmetric", "False"), "in symmetric mode whatever the scheme says"),
        Mistake(edit("not scheme.symmetric", "True"), "in asymmetric mode whatever the scheme says"),
        Mistake(edit("not scheme.symmetric", "scheme.symmetric"), "with the two modes mixed up"),
        Mistake(edit("high, scheme.bits", "high", "high), scheme.bits", "high)"), "with 8 bits whatever the scheme says; hand scheme.bits on"),
        Mistake(edit("high), scheme.bits", "high)"), "with 8 bits in symmetric mode; hand scheme.bits on there, too"),
        Mistake(edit("high, scheme.bits", "high"), "with 8 bits in asymmetric mode; hand scheme.bits on there, too"),
        Mistake(edit("block_range(", "torch.aminmax(", ", scheme)\n", ")\n"), "with one scale for the tensor, whatever the axis"),
        Mistake(channels("0"), "with a scale for each row, whatever the axis"),
        Mistake(channels("1"), "with a scale for each column, whatever the axis"),
        Mistake(channels("1 - scheme.axis", "if scheme.axis is not None else tensor.float().aminmax()"), "with rows and columns swapped; axis 0 has a scale for each row"),
        Mistake(channels("scheme.axis or 0"), "with a scale a row for axis=None; `not scheme.axis` is true of 0, too"),
        Mistake(channels("scheme.axis", "if scheme.axis else tensor.float().aminmax()"), "with a single scale for axis=0; `if scheme.axis` is false of 0 as of None"),
        Mistake(edit(ABSMAX, "high"), "with high for the largest magnitude; on the left, -low may be larger"),
        Mistake(edit(ABSMAX, "-low"), "with -low for the largest magnitude; on the right, high may be larger"),
        Mistake(edit("torch.maximum", "torch.minimum"), "with the smaller of -low and high; reach the larger one"),
        Mistake(edit(ABSMAX, "high - low"), "with the whole width for the largest magnitude; that step is too long"),
        Mistake(edit(ABSMAX, "(high - low) / 2"), "with half the width for the largest magnitude, which clips one end"),
        Mistake(edit("high), s", "high) * scheme.largest / (scheme.largest + 0.5), s"), "with (qmax - qmin) / 2 steps, as PyTorch's observers count them; ours are qmax"),
        Mistake(edit("high), s", "high) * scheme.largest / (scheme.largest + 1), s"), "with 2**(bits - 1) steps, one too many; ours are qmax"),
        Mistake(edit("torch.maximum", "max"), "with Python's max, for single numbers; for tensors it is torch.maximum"),
        Mistake(edit("block_range(", "torch.aminmax(", ", scheme)\n", ", dim=1 - scheme.axis, keepdim=True)\n"), "with `1 - scheme.axis` for axis=None, which is no number; block_range knows it"),
        Mistake(edit("(-low, high)", "(-low, high).amax().expand_as(high)"), "with the largest magnitude of the whole tensor for every channel"),
        Mistake(edit(ABSMAX, "tensor.float().abs().amax()"), "with the largest magnitude of the whole tensor in symmetric mode; the axis counts in both modes"),
        Mistake(edit("qparams(low, high", "qparams(*tensor.float().aminmax()"), "with the range of the whole tensor in asymmetric mode; the axis counts in both modes"),
        Mistake(edit("tensor.float()", "tensor"), "when a bfloat16 tensor is not made float32 first"),
        Mistake(
            edit(
                "tensor.float()",
                "tensor",
                "return asymmetric_qparams(low, high, scheme.bits)",
                "scale, zero_point = asymmetric_qparams(low, high, scheme.bits)\n        return scale.float(), zero_point",
                "return symmetric_qparams(torch.maximum(-low, high), scheme.bits)",
                "scale, zero_point = symmetric_qparams(torch.maximum(-low, high), scheme.bits)\n    return scale.float(), zero_point",
            ),
            "when bfloat16 is made float32 at the end, after the scale was rounded",
        ),
        Mistake(edit("    if not", "    low, high = low.squeeze(), high.squeeze()\n    if not"), "with the dimensions of size 1 dropped; they make the scale line up"),
        Mistake(channels("scheme.axis"), "with channel_range for axis=None, which keeps two dimensions of size 1; block_range gives a single number"),
        Mistake(edit("high), scheme.bits)", "high), scheme.bits)[0], torch.zeros_like(low, dtype=torch.int8)"), "with a zero for every scale; symmetric_qparams gives the one 0 that is needed"),
        Mistake(edit("high), scheme.bits)", "high), scheme.bits)[0], torch.zeros_like(low)"), "with zero points that are floats, and one for every scale; symmetric_qparams gives a single int8 0"),
        Mistake(edit("high), scheme.bits)", "high), scheme.bits)[0], 0"), "with a plain 0 in symmetric mode; symmetric_qparams gives it as a tensor"),
        Mistake(edit("high), scheme.bits)", "high), scheme.bits)[0]"), "with the scale alone in symmetric mode; the zero point is returned there, too"),
        Mistake(edit("high, scheme.bits)", "high, scheme.bits)[::-1]", "high), scheme.bits)", "high), scheme.bits)[::-1]"), "with scale and zero point swapped; the scale is first"),
        Mistake(edit("    if not", "    return low, high\n    if not"), "with the range itself; make scale and zero point of it"),
        Mistake(edit(ABSMAX, "tensor.abs().amax()"), "with tensor.abs().max(), the largest magnitude of the whole tensor and not in float32"),
        Mistake(edit(ABSMAX, "tensor.float().abs().amax(scheme.axis, keepdim=True)"), "with the largest magnitude over scheme.axis itself, the dimension that should stay"),
        Mistake(edit("high), scheme.bits)", "high), scheme.bits)[0], torch.tensor(0.0)"), "with 0.0 for a zero point; it is an integer"),
    ],
    equivalent=dict.fromkeys(
        ["without: if scheme.grid != 'integer':", "scheme.grid != 'integer' -> scheme.grid == 'integer'"], "the lesson's schemes have the integer grid; the other grids come in lesson 17"
    ),
    hints=[
        "Two steps. First the smallest and the largest value of each block, in float32. Then, from those two alone, the scale and zero point of the mode that the scheme asks for.",
        "In symmetric mode the largest magnitude of a block is max(-low, high); it goes to `symmetric_qparams`. In asymmetric mode low and high go to `asymmetric_qparams`. Both want the bits.",
        "Start with `block_range` of `tensor.float()`; then an `if scheme.symmetric`. On tensors, the larger of two is `torch.maximum`.",
    ],
)

EXERCISES = [CHANNEL_RANGE, CHOOSE_QPARAMS]
