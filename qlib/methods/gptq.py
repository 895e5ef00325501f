"""GPTQ: round a weight column by column, and let the columns not yet rounded make up for each error.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), section 4, Algorithm 1.
"""

import functools

import torch

from qlib.affine import dequantize, expand_groups, quantize
from qlib.grids import decode, encode
from qlib.linear import weight_of
from qlib.methods.calibration import hessian, output_errors, quantize_as_it_runs
from qlib.scheme import SHARED_SCALES
from qlib.tensor import QTensor, check_quantizable, quantize_tensor, stored_qparams

BLOCK = 128  # columns whose errors reach the rest of the matrix together (section 4, step 2)


def gptq_model(model, scheme, calibration, ignore=("lm_head",), damping=0.01, act_order=False):
    """Quantize a model's linear layers with GPTQ, in place, each on the outputs of the layers quantized before it.

    The SQNR in the report is of the weights, and lower than that of rounding: GPTQ keeps the outputs near, not them.

    Args:
        model, scheme, ignore: as for `qlib.quantize_model`.
        calibration: one batch that the model takes: token ids of shape (windows, tokens), or {name: tensor}.
        damping, act_order: as for `gptq_quantize`.

    Returns:
        a Report.
    """

    def make_qtensor(name, layer, x):
        return gptq_quantize(weight_of(layer, name), hessian(x), scheme, damping, act_order, f"{name}.weight")

    return quantize_as_it_runs(model, scheme, calibration, ignore, make_qtensor, "GPTQ")


def gptq_quantize(weight, hessian, scheme, damping=0.01, act_order=False, name="weight"):
    """Quantize one matrix so that its outputs on the calibration data change little.

    A row that would come out worse than rounding leaves it, on that measure, is rounded.

    Args:
        weight: (rows, columns), of any floating dtype.
        hessian: (columns, columns) of the layer's inputs; see `qlib.methods.hessian`.
        scheme: a Scheme. The scale of a group is found when the group is reached, from what its weights are by then;
            scales that are shared more widely, by column, or kept with numbers of the whole tensor, are those of
            rounding.
        damping: added to the Hessian's diagonal, as a share of its mean (section 4, step 3).
        act_order: whether to begin with the columns whose inputs are largest. Groups then keep the scales of rounding,
            for their columns are not met together. (An option of the authors' code, later than the paper.)
        name: what error messages call the weight.

    Returns:
        a QTensor.

    Raises:
        TypeError, ValueError: as for `quantize_tensor`, or the Hessian does not fit.
    """
    check_quantizable(weight, scheme, name)
    if hessian.shape != 2 * weight.shape[-1:]:
        raise ValueError(
            f"the Hessian of {name} must be of shape {tuple(2 * weight.shape[-1:])}, not {tuple(hessian.shape)}"
        )
    rounded = quantize_tensor(weight, scheme, name)
    if not weight.numel():
        return rounded
    weight = weight.detach().float()
    grid = [
        expand_groups(part, weight, scheme.group_size).expand_as(weight) for part in (rounded.scale, rounded.zero_point)
    ]
    order = torch.arange(weight.shape[1])
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order], damping)
    scale, zero_point = (part[:, order].clone() for part in grid)
    group_size = None if act_order or scheme.scales in SHARED_SCALES else scheme.group_size
    values = quantize_columns(weight[:, order], factor, scale, zero_point, scheme, group_size)

    back = order.argsort()
    values, scale, zero_point = values[:, back], scale[:, back], zero_point[:, back]
    lost = output_errors(weight, decode(values, scale, zero_point, scheme), hessian)
    worse = lost > output_errors(weight, rounded.dequantize(), hessian)
    values[worse], scale[worse], zero_point[worse] = rounded.values[worse], grid[0][worse], grid[1][worse]
    if group_size is None:
        return QTensor(values, rounded.scale_parts, rounded.zero_point, scheme)
    first = (slice(None), slice(None, None, group_size))  # the scale of a group's first column is the group's
    zero_point = rounded.zero_point if scheme.symmetric else zero_point[first].clone()
    return QTensor(values, scale[first].clone(), zero_point, scheme)


def quantize_columns(weight, factor, scale, zero_point, scheme, group_size=None):
    """The loop of Algorithm 1: `gptq_step` for one column after the other.

    Args:
        weight: float32, (rows, columns).
        factor: (columns, columns), upper triangular; see `inverse_factor`.
        scale, zero_point: (rows, columns), of each weight. With `group_size` they are overwritten group by group.
        scheme: a Scheme.
        group_size: columns whose scale is found anew when they are reached, or None.

    Returns:
        (rows, columns): int8 integers, or another grid's codes, uint8.
    """
    step, dtype = functools.partial(grid_step, scheme=scheme), torch.uint8
    if scheme.grid == "integer":
        step, dtype = functools.partial(gptq_step, bits=scheme.bits), torch.int8
    weight, values, columns = weight.clone(), torch.empty(weight.shape, dtype=dtype), weight.shape[1]
    # A block holds whole groups: the last column of a group must have had all errors when its scale is found.
    width = BLOCK if group_size is None else group_size * max(1, BLOCK // group_size)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        errors = weight.new_zeros(len(weight), end - start)
        for i in range(start, end):
            if group_size is not None and i % group_size == 0:
                group = slice(i, i + group_size)
                _, scale[:, group], zero_point[:, group] = stored_qparams(weight[:, group], scheme)
            values[:, i], errors[:, i - start], weight[:, i + 1 : end] = step(
                weight[:, i:end], factor[i, i:end], scale[:, i], zero_point[:, i]
            )
        weight[:, end:] -= errors @ factor[start:end, end:]
    return values


def gptq_step(weight, factor_row, scale, zero_point, bits):
    """Round the first column, and let those after it make up for its error (section 4, Algorithm 1).

    Args:
        weight: float32, (rows, columns): the column to round, and those that are still to come.
        factor_row: (columns,), the row of the factor that belongs to the column, from its diagonal on.
        scale, zero_point: (rows,), of the column.
        bits: width of the integers.

    Returns:
        (values, error, rest): int8 (rows,); float32 (rows,), the column's error divided by the factor's diagonal;
        float32 (rows, columns - 1), the columns to come, less their share of that error.
    """
    values = quantize(weight[:, 0], scale, zero_point, bits)
    error = (weight[:, 0] - dequantize(values, scale, zero_point)) / factor_row[0]
    return values, error, weight[:, 1:] - error.outer(factor_row[1:])


def grid_step(weight, factor_row, scale, zero_point, scheme):
    """`gptq_step` on another grid than the integers; `values` are its codes, uint8."""
    scale = scale.unsqueeze(1)
    values = encode(weight[:, :1], scale, zero_point, scheme)
    error = (weight[:, :1] - decode(values, scale, zero_point, scheme)).squeeze(1) / factor_row[0]
    return values.squeeze(1), error, weight[:, 1:] - error.outer(factor_row[1:])


def inverse_factor(hessian, damping):
    """The upper triangular U with UᵀU = H⁻¹, of the damped Hessian (section 4, step 3).

    Row i of U, from its diagonal on and times U[i, i], is the first row of the inverse of the Hessian without the
    columns before i: all that the loop ever reads of those inverses (section 3, equation 3), found at once.

    Returns:
        float32, (columns, columns).
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds a NaN or an infinity")
    mean = hessian.diagonal().mean().item()
    # Without any input no error costs anything, and every column is on its own.
    damped = hessian.double() + (damping * mean if mean > 0 else 1.0) * torch.eye(len(hessian), dtype=torch.float64)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).float()
    except torch.linalg.LinAlgError:
        raise ValueError(f"the Hessian has no inverse at damping={damping}: give more of it") from None
