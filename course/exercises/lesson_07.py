"""Exercises of lesson 7: per channel quantization."""

import dataclasses

import torch

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.affine import asymmetric_qparams, block_range, channel_range, choose_qparams, quant_range, symmetric_qparams
from qlib.scheme import Scheme

MATRIX = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])
SPREAD = torch.linspace(-0.77, 0.65, 64).reshape(4, 16)
# Multiples of 37 modulo 101: numbers in no order, so that no channel has its extremes where another has.
MIXED = (torch.arange(48) * 37 % 101 - 40) / 16


# ---------------------------------------------------------------- 07.1 channel_range


def others(tensor, axis):
    return [dim for dim in range(tensor.ndim) if dim != axis]


def reduces_the_kept_dimension(tensor, axis):
    return tensor.amin(axis, keepdim=True), tensor.amax(axis, keepdim=True)


def reduces_and_drops_the_kept_dimension(tensor, axis):
    return tensor.amin(axis), tensor.amax(axis)


def drops_the_dimensions(tensor, axis):
    return tensor.amin(others(tensor, axis)), tensor.amax(others(tensor, axis))


def always_takes_rows(tensor, axis):
    return channel_range(tensor, 0)


def always_takes_columns(tensor, axis):
    return channel_range(tensor, 1)


def takes_the_whole_tensor(tensor, axis):
    return tensor.amin(), tensor.amax()


def takes_the_whole_tensor_and_keeps_its_dimensions(tensor, axis):
    dims = list(range(tensor.ndim))
    return tensor.amin(dims, keepdim=True), tensor.amax(dims, keepdim=True)


def takes_it_for_a_matrix(tensor, axis):
    return tensor.amin(1 - axis, keepdim=True), tensor.amax(1 - axis, keepdim=True)


def keeps_the_positions_too(tensor, axis):
    return tensor.min(1 - axis, keepdim=True), tensor.max(1 - axis, keepdim=True)


def reduces_the_kept_dimension_and_keeps_the_positions(tensor, axis):
    return tensor.min(axis), tensor.max(axis)


def stands_every_channel_upright(tensor, axis):
    low, high = channel_range(tensor, axis)
    return low.reshape(-1, 1), high.reshape(-1, 1)


def cuts_channels_off_with_reshape(tensor, axis):
    channels = tensor.reshape(tensor.shape[axis], -1)
    shape = [-1 if dim == axis else 1 for dim in range(tensor.ndim)]
    return channels.amin(1).reshape(shape), channels.amax(1).reshape(shape)


def mirrors_the_range(tensor, axis):
    absmax = tensor.abs().amax(others(tensor, axis), keepdim=True)
    return -absmax, absmax


def takes_the_range_of_the_magnitudes(tensor, axis):
    return channel_range(tensor.abs(), axis)


def swaps_low_and_high(tensor, axis):
    return channel_range(tensor, axis)[::-1]


def widens_the_range(tensor, axis):
    low, high = channel_range(tensor, axis)
    return low.clamp(max=0), high.clamp(min=0)


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
        Mistake(
            reduces_the_kept_dimension, "when you reduce the very dimension that should stay; the others have to go"
        ),
        Mistake(
            reduces_and_drops_the_kept_dimension, "when you reduce `axis` itself; reduce the others, with keepdim=True"
        ),
        Mistake(drops_the_dimensions, "without keepdim=True; what is left does not line up with the tensor any more"),
        Mistake(always_takes_rows, "with the range of each row, whatever the axis"),
        Mistake(always_takes_columns, "with the range of each column, whatever the axis"),
        Mistake(takes_the_whole_tensor, "with the range of the whole tensor; each channel has its own"),
        Mistake(
            takes_the_whole_tensor_and_keeps_its_dimensions,
            "when every dimension is reduced; the one that `axis` names has to stay",
        ),
        Mistake(
            takes_it_for_a_matrix, "with `1 - axis`, which works for two dimensions; here there are more to reduce"
        ),
        Mistake(
            keeps_the_positions_too, "with .min(dim), which returns positions as well; .amin gives the values alone"
        ),
        Mistake(
            reduces_the_kept_dimension_and_keeps_the_positions,
            "with .min(axis): it returns positions as well, and it reduces the very dimension that should stay",
        ),
        Mistake(
            stands_every_channel_upright, "with shape (channels, 1) for every axis; that lines up with axis 0 alone"
        ),
        Mistake(
            cuts_channels_off_with_reshape,
            "with reshape(channels, -1), which cuts the numbers in the order they are stored; that fits axis 0 alone",
        ),
        Mistake(mirrors_the_range, "with the largest magnitude on both sides; low and high are two different numbers"),
        Mistake(takes_the_range_of_the_magnitudes, "with abs() first, which loses the sign; low may be negative"),
        Mistake(swaps_low_and_high, "with low and high swapped"),
        Mistake(widens_the_range, "with a range widened to hold 0; asymmetric_qparams does that when it is its turn"),
    ],
    hints=[
        "A channel is a slice along `axis`. Everything but that dimension is reduced to its smallest and its largest "
        "value, and stays in the shape as a 1.",
        "For a matrix and axis 0 that is the minimum over dimension 1, for axis 1 over dimension 0; in general, over "
        "all dimensions d with d ≠ axis.",
        "`tensor.amin` takes a list of dimensions and keepdim=True. Make the list first: every `dim` in "
        "`range(tensor.ndim)` that is not the axis.",
    ],
)


# ---------------------------------------------------------------- 07.2 choose_qparams


def chooses(tensor, scheme, absmax=torch.maximum, **changed):
    """The right answer, for the mistakes below to spoil in one place each."""
    scheme = dataclasses.replace(scheme, **changed)
    low, high = block_range(tensor.float(), scheme)
    if scheme.symmetric:
        return symmetric_qparams(absmax(-low, high), scheme.bits)
    return asymmetric_qparams(low, high, scheme.bits)


def is_always_symmetric(tensor, scheme):
    return chooses(tensor, scheme, symmetric=True)


def is_always_asymmetric(tensor, scheme):
    return chooses(tensor, scheme, symmetric=False)


def mixes_up_the_modes(tensor, scheme):
    return chooses(tensor, scheme, symmetric=not scheme.symmetric)


def always_8_bits(tensor, scheme):
    return chooses(tensor, scheme, bits=8)


def forgets_the_bits_in_symmetric_mode(tensor, scheme):
    return chooses(tensor, scheme, bits=8 if scheme.symmetric else scheme.bits)


def always_per_tensor(tensor, scheme):
    return chooses(tensor, scheme, axis=None)


def always_per_row(tensor, scheme):
    return chooses(tensor, scheme, axis=0)


def always_per_column(tensor, scheme):
    return chooses(tensor, scheme, axis=1)


def swaps_the_axes(tensor, scheme):
    return chooses(tensor, scheme, axis={None: None, 0: 1, 1: 0}[scheme.axis])


def takes_none_for_axis_0(tensor, scheme):
    return chooses(tensor, scheme, axis=scheme.axis or 0)


def takes_axis_0_for_none(tensor, scheme):
    return chooses(tensor, scheme, axis=scheme.axis or None)


def takes_high_for_absmax(tensor, scheme):
    return chooses(tensor, scheme, absmax=lambda minus_low, high: high)


def takes_low_for_absmax(tensor, scheme):
    return chooses(tensor, scheme, absmax=lambda minus_low, high: minus_low)


def takes_the_smaller_end(tensor, scheme):
    return chooses(tensor, scheme, absmax=torch.minimum)


def takes_the_width_for_absmax(tensor, scheme):
    return chooses(tensor, scheme, absmax=torch.add)


def takes_half_the_width_for_absmax(tensor, scheme):
    return chooses(tensor, scheme, absmax=lambda minus_low, high: (minus_low + high) / 2)


def counts_half_steps(tensor, scheme):
    scale, zero_point = chooses(tensor, scheme)
    qmin, qmax = quant_range(scheme.bits)
    return (scale * qmax / ((qmax - qmin) / 2) if scheme.symmetric else scale), zero_point


def compares_with_python(tensor, scheme):
    return chooses(tensor, scheme, absmax=max)


def reduces_one_dimension_only(tensor, scheme):
    tensor.amax(1 - scheme.axis, keepdim=True)
    return chooses(tensor, scheme)


def takes_the_absmax_of_the_whole_tensor(tensor, scheme):
    return chooses(tensor, scheme, absmax=lambda minus_low, high: tensor.float().abs().amax().expand_as(high))


def takes_the_range_of_the_whole_tensor_in_asymmetric_mode(tensor, scheme):
    return chooses(tensor, scheme, **({} if scheme.symmetric else {"axis": None}))


def stays_in_half_precision(tensor, scheme):
    low, high = block_range(tensor, scheme)
    if scheme.symmetric:
        return symmetric_qparams(torch.maximum(-low, high), scheme.bits)
    return asymmetric_qparams(low, high, scheme.bits)


def makes_float32_of_it_at_the_end(tensor, scheme):
    scale, zero_point = stays_in_half_precision(tensor, scheme)
    return scale.float(), zero_point


def drops_the_dimensions_of_a_channel(tensor, scheme):
    scale, zero_point = chooses(tensor, scheme)
    return scale.squeeze(), zero_point.squeeze()


def takes_axis_none_for_a_channel(tensor, scheme):
    scale, zero_point = chooses(tensor, scheme)
    return (scale.reshape(1, 1) if scheme.axis is None else scale), zero_point


def gives_every_scale_a_zero(tensor, scheme):
    scale, zero_point = chooses(tensor, scheme)
    return scale, zero_point.expand_as(scale).clone()


def swaps_scale_and_zero_point(tensor, scheme):
    return chooses(tensor, scheme)[::-1]


def returns_the_range(tensor, scheme):
    return block_range(tensor.float(), scheme)


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
        Case(
            "a 4 x 16 matrix from -0.77 to 0.65, 4 bits, asymmetric, per column",
            (SPREAD, Scheme(4, symmetric=False, axis=1)),
        ),
        Case("a 4 x 16 matrix from -0.77 to 0.65, 4 bits, symmetric, per row", (SPREAD, Scheme(4, axis=0))),
        Case("a matrix in bfloat16, 8 bits, symmetric, per row", (SPREAD.bfloat16(), Scheme(8, axis=0))),
        Case(
            "a matrix in bfloat16, 3 bits, asymmetric, per tensor",
            (SPREAD.bfloat16(), Scheme(3, symmetric=False, axis=None)),
        ),
    ],
    mistakes=[
        Mistake(is_always_symmetric, "in symmetric mode whatever the scheme says"),
        Mistake(is_always_asymmetric, "in asymmetric mode whatever the scheme says"),
        Mistake(mixes_up_the_modes, "with the two modes mixed up"),
        Mistake(always_8_bits, "with 8 bits whatever the scheme says; hand scheme.bits on"),
        Mistake(
            forgets_the_bits_in_symmetric_mode, "with 8 bits in symmetric mode; symmetric_qparams wants the bits, too"
        ),
        Mistake(always_per_tensor, "with one scale for the whole tensor, whatever the axis"),
        Mistake(always_per_row, "with a scale for each row, whatever the axis"),
        Mistake(always_per_column, "with a scale for each column, whatever the axis"),
        Mistake(swaps_the_axes, "with rows and columns swapped; axis 0 has a scale for each row"),
        Mistake(takes_none_for_axis_0, "with a scale a row for axis=None; `not scheme.axis` is true of None and of 0"),
        Mistake(takes_axis_0_for_none, "with a single scale for axis=0; `if scheme.axis` is false of 0 as of None"),
        Mistake(takes_high_for_absmax, "with high for the largest magnitude; on the left, -low may be larger"),
        Mistake(takes_low_for_absmax, "with -low for the largest magnitude; on the right, high may be larger"),
        Mistake(takes_the_smaller_end, "with the smaller of -low and high; the ruler has to reach the larger one"),
        Mistake(takes_the_width_for_absmax, "with the whole width for the largest magnitude; that step is too long"),
        Mistake(takes_half_the_width_for_absmax, "with half the width for the largest magnitude, which clips one end"),
        Mistake(counts_half_steps, "with (qmax - qmin) / 2 steps, as PyTorch's observers count them; ours are qmax"),
        Mistake(compares_with_python, "with Python's max; it takes one number, and these are tensors: torch.maximum"),
        Mistake(
            reduces_one_dimension_only, "with `1 - scheme.axis` for axis=None, which is no number; block_range knows it"
        ),
        Mistake(
            takes_the_absmax_of_the_whole_tensor, "with the largest magnitude of the whole tensor for every channel"
        ),
        Mistake(
            takes_the_range_of_the_whole_tensor_in_asymmetric_mode,
            "with the range of the whole tensor in asymmetric mode; the axis counts in both modes",
        ),
        Mistake(stays_in_half_precision, "when a bfloat16 tensor is not made float32 first"),
        Mistake(
            makes_float32_of_it_at_the_end, "when bfloat16 is made float32 at the end, after the scale was rounded"
        ),
        Mistake(
            drops_the_dimensions_of_a_channel, "with the dimensions of size 1 dropped; they make the scale line up"
        ),
        Mistake(
            takes_axis_none_for_a_channel,
            "with channel_range for axis=None, which keeps two dimensions of size 1; block_range gives a single number",
        ),
        Mistake(
            gives_every_scale_a_zero, "with a zero for every scale; symmetric_qparams gives the one 0 that is needed"
        ),
        Mistake(swaps_scale_and_zero_point, "with scale and zero point swapped; the scale is first"),
        Mistake(returns_the_range, "with the range itself; scale and zero point are still to be made of it"),
    ],
    hints=[
        "Two steps. First the smallest and the largest value of each block, in float32. Then, from those two alone, the "
        "scale and zero point of the mode that the scheme asks for.",
        "In symmetric mode the largest magnitude of a block is max(-low, high); it goes to `symmetric_qparams`. In "
        "asymmetric mode low and high go to `asymmetric_qparams`. Both want the bits.",
        "Start with `block_range` of `tensor.float()`; then an `if scheme.symmetric`. On tensors, the larger of two "
        "is `torch.maximum`.",
    ],
)

EXERCISES = [CHANNEL_RANGE, CHOOSE_QPARAMS]
