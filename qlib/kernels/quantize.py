"""Quantizing a large matrix some rows at a time, in place: what tensor.quantize_tensor does, to the bit.

What is made on the way stays in the cache, and the next rows take the same memory. So a few megabytes do beside the
result, where several copies of the whole tensor, one of them in int64, would be made.
"""

import math

import torch

from qlib.affine import block_range, choose_qparams, expand_groups, nonzero_scale, quant_range
from qlib.grids import block_absmax, encode, read_scale, scale_parts
from qlib.packing import pack
from qlib.scheme import SHARED_SCALES

# Values that are quantized at a time: a megabyte of float32, which a core has in its own cache.
BLOCK_SIZE = 64 * 4096


def quantize_in_blocks(tensor, scheme):
    """The packed codes, the parts of the scale, and the zero point of a tensor of two dimensions or more."""
    blocks, octets = row_blocks(tensor.shape), (tensor.shape[-1] * scheme.bits + 7) // 8
    packed = torch.empty((*tensor.shape[:-1], octets), dtype=torch.uint8, device=tensor.device)
    if scheme.axis == 0 and scheme.scales not in SHARED_SCALES:  # then each block is read once
        parts, zero_points = zip(*(quantize_block(tensor[rows].float(), packed[rows], scheme) for rows in blocks))
        zero_point = zero_points[0] if scheme.symmetric else torch.cat(zero_points)
        return packed, {"scale": torch.cat([part["scale"] for part in parts])}, zero_point
    scale, zero_point, absmax = qparams_in_blocks([tensor[rows] for rows in blocks], scheme)
    parts = scale_parts(scale, scheme, absmax)
    scale = nonzero_scale(read_scale(parts, scheme, scale.shape))
    for rows in blocks:
        qparams = [part[rows] if scheme.axis == 0 and part.ndim else part for part in (scale, zero_point)]
        packed[rows] = packed_codes(tensor[rows].float(), *qparams, scheme)
    return packed, parts, zero_point


def quantize_block(block, place, scheme):
    """Write the codes of rows whose scales are their own to `place`; returns the parts of the scales, and the zeros."""
    scale, zero_point = choose_qparams(block, scheme)
    parts = scale_parts(scale, scheme)
    place.copy_(packed_codes(block, read_scale(parts, scheme, scale.shape), zero_point, scheme))
    return parts, zero_point


def is_large(shape):
    """Whether a tensor of this shape is better done some rows at a time."""
    return len(shape) > 1 and shape.numel() > BLOCK_SIZE


def row_blocks(shape):
    """Slices of so many rows of a large tensor as make a block."""
    height = max(1, BLOCK_SIZE // shape[1:].numel())
    return [slice(first, first + height) for first in range(0, shape[0], height)]


def qparams_in_blocks(blocks, scheme):
    """What `choose_qparams` gives for all the blocks together, and what `block_absmax` gives."""
    if scheme.axis == 0:
        scales, zero_points, absmaxes = zip(*((*choose_qparams(b, scheme), block_absmax(b, scheme)) for b in blocks))
        zero_point = zero_points[0] if scheme.symmetric else torch.cat(zero_points)
        return torch.cat(scales), zero_point, torch.cat(absmaxes)
    lows, highs = zip(*(block_range(block.float(), scheme) for block in blocks))
    ends = [torch.stack(lows).amin(0), torch.stack(highs).amax(0)]
    ends = torch.cat(ends) if scheme.axis == 1 else torch.stack(ends)  # a small tensor of the same ranges
    return *choose_qparams(ends, scheme), block_absmax(ends, scheme)


def packed_codes(block, scale, zero_point, scheme):
    """`encode` and `pack` in one, to the bit, for a float32 block (…, columns): uint8, (…, octets).

    The arithmetic is done in place. Values that fill whole bytes together, four at 2 bits, eight in three bytes at 3,
    are put together while they are floats: there a shift is a product, and float32 holds 24 bits exactly.
    """
    if scheme.grid != "integer":
        return pack(encode(block, scale, zero_point, scheme), scheme.bits)
    qmin, qmax = quant_range(scheme.bits)
    columns, group = block.shape[-1], scheme.group_size
    if group is not None and columns % group == 0 and columns:
        codes = block.unflatten(-1, (-1, group)) / scale.unsqueeze(-1)
        zero_point = zero_point if scheme.symmetric else zero_point.unsqueeze(-1)
    else:
        codes = block / expand_groups(scale, block, group)
        zero_point = expand_groups(zero_point, block, group)
    codes.add_(zero_point).round_().clamp_(qmin, qmax).sub_(qmin)
    codes = codes.reshape(block.shape)
    values, octets = 8 // math.gcd(scheme.bits, 8), scheme.bits // math.gcd(scheme.bits, 8)
    if columns % values or octets > 3:
        return pack(codes.to(torch.uint8), scheme.bits)
    units = codes.unflatten(-1, (-1, values))
    word = units[..., 0].clone() if values > 1 else units[..., 0]
    for i in range(1, values):
        word.add_(units[..., i], alpha=2 ** (scheme.bits * i))
    if octets == 1:
        return word.to(torch.uint8)
    return word.to(torch.int32).unsqueeze(-1).view(torch.uint8)[..., :octets].flatten(-2)
