"""HQQ: move the zero point of each block to where most weights come back nearly right, and a few may be off.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog),
sections "Formulation" and "Solver". No calibration data is looked at.
"""

import torch

from qlib.affine import dequantize, expand_groups, quant_range, quantize, split_groups
from qlib.linear import QLinear, weight_of
from qlib.model import quantize_model
from qlib.tensor import QTensor, check_quantizable, stored_qparams


def hqq_model(model, scheme, zero_dtype=torch.float16, ignore=("lm_head",)):
    """Quantize a model's linear layers with HQQ, in place, as `qlib.quantize_model` does; returns a Report.

    Args: as for `qlib.quantize_model`; zero_dtype as for `hqq_quantize`.
    """

    def quantize_layer(layer, scheme, name):
        qtensor = hqq_quantize(weight_of(layer, name), scheme, zero_dtype, f"{name}.weight")
        return QLinear.from_qtensor(qtensor, layer.bias, dtype=layer.weight.dtype).train(layer.training)

    check_asymmetric(scheme)
    return quantize_model(model, scheme, ignore, quantize_layer=quantize_layer)


def hqq_quantize(weight, scheme, zero_dtype=torch.float16, name="weight"):
    """Quantize one matrix: the scales are those of rounding, the zero points the best that the iteration came by.

    Best is the least squared error, block by block, and rounding is among those compared: no block is ever worse. (The
    published code stops for the whole matrix when its mean magnitude of error grows, and keeps the last.)

    The zero points are fractions, as in the published code; so 0.0 no longer has a value of its own. They run through
    the plain formula and not through the fast kernels. Rounded to whole numbers they are those of rounding again: the
    iteration moves them by less than half a step, and `zero_dtype=torch.int8` gains nothing on real weights.

    Args:
        weight: (rows, columns), of any floating dtype.
        scheme: an asymmetric Scheme.
        zero_dtype: of the zero points: torch.float16 or torch.float32; torch.int8 to round them.
        name: what error messages call the weight.

    Returns:
        a QTensor, whose zero points have the dtype `zero_dtype`.

    Raises:
        TypeError, ValueError: as for `quantize_tensor`, or the scheme is symmetric.
    """
    check_quantizable(weight, scheme, name)
    check_asymmetric(scheme)
    weight = weight.detach().float()
    scale_parts, scale, zero_point = stored_qparams(weight, scheme)
    best = zero_point.to(zero_dtype)
    least = block_errors(weight, scale, best, scheme)
    for moved in half_quadratic_zero_points(weight, scale, zero_point, scheme):
        if not zero_dtype.is_floating_point:
            moved = moved.round().clamp(*quant_range(scheme.bits))
        moved = moved.to(zero_dtype)
        errors = block_errors(weight, scale, moved, scheme)
        best = torch.where(errors < least, moved, best)
        least = torch.minimum(errors, least)
    values = quantize(weight, scale, best, scheme.bits, scheme.group_size)
    return QTensor(values, scale_parts, best, scheme)


def half_quadratic_zero_points(weight, scale, zero_point, scheme, p=0.7, beta=10.0, kappa=1.01, steps=20):
    """The iteration: yields the zero points after each step, float32, of the shape of `scale`.

    What is to be made small is the sum of |weight - dequantized| to the power p < 1, which forgives a few large errors
    for many small ones. Half-quadratic splitting gives the large errors a variable of their own and takes turns:
    shrink the errors to those that are large (sub-problem 1), then set the zero point to the mean of where each
    weight without its large error would have it (sub-problem 2). beta, the price of a difference between the errors
    and their variable, grows by kappa a step. (The authors' package, hqq 0.2.8, leaves it as it is: kappa=1.)

    Args:
        weight: float32, (rows, columns).
        scale, zero_point: of the blocks, to start from.
        scheme: says what the blocks are.
    """
    columns_scale = expand_groups(scale, weight, scheme.group_size)
    for _ in range(steps):
        values = quantize(weight, scale, zero_point, scheme.bits, scheme.group_size)
        large = shrink(weight - dequantize(values, scale, zero_point, scheme.group_size), beta, p)
        zero_point = block_mean(values - (weight - large) / columns_scale, scheme)
        yield zero_point
        beta *= kappa


def shrink(error, beta, p):
    """The generalized soft threshold: sign(e) * max(|e| - |e| ** (p - 1) / beta, 0).

    What is smaller than beta ** (-1 / (2 - p)) becomes 0: at p = 0.7 and beta = 10 that is 0.17, in the unit of the
    weights, and where no error is that large the whole iteration is least squares.
    """
    size = error.abs()
    return error.sign() * (size - size ** (p - 1) / beta).clamp(min=0)


def block_errors(weight, scale, zero_point, scheme):
    """The mean squared error of each block, in the shape of `scale`."""
    values = quantize(weight, scale, zero_point, scheme.bits, scheme.group_size)
    return block_mean((weight - dequantize(values, scale, zero_point, scheme.group_size)).square(), scheme)


def block_mean(tensor, scheme):
    """The mean of each block that shares a scale, in the shape of that scale."""
    if scheme.group_size is not None:
        filled, ones = (split_groups(t, scheme.group_size).sum(-1) for t in (tensor, torch.ones_like(tensor)))
        return filled / ones
    return tensor.mean() if scheme.axis is None else tensor.mean(1 - scheme.axis, keepdim=True)


def check_asymmetric(scheme):
    """Raise ValueError for a symmetric scheme, whose zero point is 0 and cannot move."""
    if scheme.symmetric:
        raise ValueError(f"HQQ moves the zero point, so it needs an asymmetric scheme, not {scheme}")
