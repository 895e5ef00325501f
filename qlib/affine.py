"""The linear map between real numbers and small integers: real = scale * (integer - zero_point).

These functions are the answer key of lessons 3 to 8, so they are short and trust their input; the checks on a
user's own tensors are in tensor.py. The scheme is that of Jacob et al. 2018 (arXiv:1712.05877), section 2.1.
"""

import torch


def quant_range(bits):
    """The smallest and the largest signed integer of `bits` bits: (-128, 127) at 8, (-2, 1) at 2."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize(tensor, scale, zero_point, bits=8, group_size=None):
    """Turn real numbers into integers: q = round(r / scale + zero_point), held inside the range of `bits` bits.

    Ties go to the even integer, as torch.round has it. PyTorch's own quantizers multiply by 1 / scale, and some of
    them round before they add the zero point, so on a tie they may give the neighbouring integer.

    Args:
        tensor: real numbers of any floating dtype and any shape.
        scale: float32, the distance between two neighbouring integers in the unit of `tensor`; a number or a
            tensor that broadcasts against `tensor`, or (rows, groups).
        zero_point: the integer that stands for 0.0; same shapes as `scale`.
        bits: width of the integers, at most 8.
        group_size: columns in a group, for (rows, groups); None where all groups are of one size.

    Returns:
        int8 tensor of the shape of `tensor`; what lies outside the range takes the nearest end of it.
    """
    qmin, qmax = quant_range(bits)
    scale, zero_point = (expand_groups(qparam, tensor, group_size) for qparam in (scale, zero_point))
    q = torch.round(tensor.float() / scale + zero_point)
    return q.clamp(qmin, qmax).to(torch.int8)


def dequantize(values, scale, zero_point, group_size=None):
    """Turn integers back into real numbers: r = scale * (q - zero_point).

    Args:
        values: integers, any shape.
        scale, zero_point, group_size: as for `quantize`.

    Returns:
        float32 tensor of the shape of `values`, in the unit of `scale`.
    """
    scale, zero_point = (expand_groups(qparam, values, group_size) for qparam in (scale, zero_point))
    return scale * (values.float() - zero_point)


def asymmetric_qparams(low, high, bits=8):
    """The scale and zero point that spread the integers of `bits` bits from `low` to `high`.

    The range is widened to hold 0.0, so that 0.0 has an integer of its own and the zero point fits in `bits` bits.

    Args:
        low, high: float32 tensors of one shape, the smallest and the largest value of each block.
        bits: width of the integers, 2 to 8.

    Returns:
        (scale, zero_point): float32 and int8, of the shape of `low`. A block of zeros gets a scale of 1.
    """
    qmin, qmax = quant_range(bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = nonzero_scale((high - low) / (qmax - qmin))
    zero_point = torch.round(qmin - low / scale).clamp(qmin, qmax)
    return scale, zero_point.to(torch.int8)


def symmetric_qparams(absmax, bits=8):
    """The scale that spreads the integers of `bits` bits from -`absmax` to `absmax`; the zero point is 0.

    Args:
        absmax: float32 tensor, the largest magnitude of each block.
        bits: width of the integers, 2 to 8.

    Returns:
        (scale, zero_point): float32 of the shape of `absmax`, and a single int8 0. A block of zeros gets a scale of 1.
    """
    qmin, qmax = quant_range(bits)
    return nonzero_scale(absmax / qmax), torch.tensor(0, dtype=torch.int8)


def level_qparams(largest, low, high):
    """`symmetric_qparams` for another grid than the integers, which ends at `largest`; of each block's range."""
    return nonzero_scale(torch.maximum(-low, high) / largest), torch.tensor(0, dtype=torch.int8)


def full_range_qparams(low, high, bits=8):
    """The scale that puts the value of the largest magnitude on the smallest integer, which symmetric mode never uses.

    The smallest integer has no positive twin, so the scale is negative where that value is positive. On its side the
    grid then ends at it, with one step more than in symmetric mode; on the other side it ends one step earlier, and
    what lies beyond is clipped. So llama.cpp makes its Q4_0 (quantize_row_q4_0_ref in ggml-quants.c).

    Args:
        low, high: float32 tensors of one shape, the smallest and the largest value of each block.
        bits: width of the integers, 2 to 8.

    Returns:
        (scale, zero_point): float32 of the shape of `low`, and a single int8 0. A block of zeros gets a scale of 1.
    """
    qmin, qmax = quant_range(bits)
    farthest = torch.where(high > -low, high, low)
    return nonzero_scale(farthest / qmin), torch.tensor(0, dtype=torch.int8)


def choose_qparams(tensor, scheme):
    """The scale and zero point of each block of `tensor`, as `scheme` cuts and maps it.

    Args:
        tensor: real numbers of any floating dtype; (rows, columns), or any shape for per tensor and per row.
        scheme: a Scheme.

    Returns:
        (scale, zero_point): float32 and int8, of shape () per tensor, (rows, 1) per row, (1, columns) per column,
        (rows, groups) per group. In symmetric mode the zero point is a single 0. How the scheme keeps its scales is
        not looked at here: see grids.store_scale.
    """
    low, high = block_range(tensor.float(), scheme)
    if not scheme.symmetric:
        return asymmetric_qparams(low, high, scheme.bits)
    if scheme.grid != "integer":
        return level_qparams(scheme.largest, low, high)
    return symmetric_qparams(torch.maximum(-low, high), scheme.bits)


def block_range(tensor, scheme):
    """The smallest and the largest value of each block that shares a scale, in the shape of that scale.

    A vector counts as one row. An empty tensor has the range (0, 0).
    """
    if tensor.numel() == 0:
        tensor = tensor.new_zeros([max(size, 1) for size in tensor.shape])
    if scheme.axis is None or tensor.ndim == 0:
        return tensor.amin(), tensor.amax()
    if scheme.group_size is not None:
        groups = split_groups(tensor, scheme.group_size)
        return groups.amin(-1), groups.amax(-1)
    if tensor.ndim == 1:
        low, high = channel_range(tensor.unsqueeze(0), scheme.axis)
        return low.squeeze(0), high.squeeze(0)
    return channel_range(tensor, scheme.axis)


def qparam_shape(rows, columns, scheme):
    """The shape of the scales of a (rows, columns) matrix, no matrix needed: as `choose_qparams` would give them."""
    rows, columns = max(rows, 1), max(columns, 1)
    if scheme.group_size is not None:
        return rows, -(-columns // scheme.group_size)
    return {None: (), 0: (rows, 1), 1: (1, columns)}[scheme.axis]


def channel_range(tensor, axis):
    """The smallest and the largest value of each channel: of each row for axis 0, of each column for axis 1.

    Args:
        tensor: (rows, columns) or more dimensions.
        axis: the dimension whose slices are the channels.

    Returns:
        (low, high), of the shape of `tensor` with every dimension but `axis` shrunk to 1, so that they broadcast.
    """
    others = [dim for dim in range(tensor.ndim) if dim != axis]
    return tensor.amin(others, keepdim=True), tensor.amax(others, keepdim=True)


def split_groups(tensor, group_size):
    """(..., columns) as (..., groups, group_size); a shorter last group is filled up with zeros."""
    filled = torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % group_size))
    return filled.unflatten(-1, (-1, group_size))


def expand_groups(qparam, tensor, group_size=None):
    """Spread a scale (or zero point) per group over the columns, so that it broadcasts against `tensor`.

    Args:
        qparam: a number, or a tensor of shape (), (rows, 1), (1, columns) or (rows, groups).
        tensor: (rows, columns), whose columns the groups cover.
        group_size: columns in a group; None for groups of equal size.

    Returns:
        (rows, columns) for a `qparam` per group; any other `qparam` as it came, for it broadcasts already.

    Raises:
        ValueError: the groups do not cover the columns.
    """
    if not isinstance(qparam, torch.Tensor) or qparam.ndim < max(tensor.ndim, 1):
        return qparam
    if qparam.shape[-1] in (1, tensor.shape[-1]):
        return qparam
    columns, groups = tensor.shape[-1], qparam.shape[-1]
    if group_size is None:
        if columns % groups:
            raise ValueError(f"{columns} columns do not make {groups} equal groups: give the group size")
        group_size = columns // groups
    elif -(-columns // group_size) != groups:
        raise ValueError(
            f"{columns} columns in groups of {group_size} need {-(-columns // group_size)} scales a row, not {groups}"
        )
    return qparam.repeat_interleave(group_size, dim=-1)[..., :columns]


def nonzero_scale(scale):
    """`scale` with 1 where it is zero, or below 128 steps of float32's smallest: dividing by it is safe, and exact."""
    return torch.where(scale.abs() < 2.0**-142, 1.0, scale)
