"""The grids that are no integers, each a table of levels, and the formats that scales are kept in.

A code is the place of a level in its table, so `levels[code] * scale` is the real number, and the codes of FP4 and FP8
are those numbers' own bits.

- nf4: Dettmers et al. 2023, "QLoRA" (arXiv:2305.14314), section 3, which also has double quantization.
- e2m1 and e8m0: the Open Compute Project's Microscaling Formats (MX) v1.0, sections 5.3.3 and 5.4.1.
- e4m3: Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv:2209.05433), section 3.
- e4m3 scales with one float32 above: NVIDIA's NVFP4, as compressed-tensors keeps it.
"""

import functools
import math

import torch

from qlib.affine import block_range, dequantize, expand_groups, nonzero_scale, qparam_shape, quantize, symmetric_qparams
from qlib.scheme import SHARED_SCALES, Scheme

SCALE_SCHEME = Scheme(bits=8, group_size=256)  # of scales that are quantized themselves
LARGEST_E4M3 = torch.finfo(torch.float8_e4m3fn).max
E4M3_FOR_ZEROS = torch.finfo(torch.float8_e4m3fn).eps  # as compressed-tensors has it, of a block of zeros

# ---------------------------------------------------------------- levels


@functools.cache
def nf4_levels():
    """The sixteen values of NF4, float32, from -1 to 1: quantiles of the normal distribution, an exact 0 among them.

    Neighbours are equally far apart in probability, so that normal weights use them about equally often: seven steps
    from the lowest up to 0, eight from 0 to the highest. The quantile of probability 1 is infinite; the outermost stop
    short of it, half of a step of 1/15 or 1/16: the mean of the two. (The paper leaves that open; its authors' code
    has 0.9677083.)
    """
    end = (29 / 30 + 31 / 32) / 2
    below, above = (torch.special.ndtri(torch.linspace(0.5, end, n, dtype=torch.float64)) for n in (8, 9))
    return (torch.cat([-below.flip(0), above[1:]]) / above[-1]).float()


@functools.cache
def e2m1_levels():
    """The sixteen values of FP4 in the order of their bits: sign, two bits of exponent, one of fraction."""
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    return torch.tensor(positive + [-level for level in positive], dtype=torch.float32)


@functools.cache
def e4m3_levels():
    """The 256 values of FP8 in the order of their bits; two of them are NaN."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


LEVELS = {"nf4": nf4_levels, "e2m1": e2m1_levels, "e4m3": e4m3_levels}


def nf4_codes(x):
    """The code of the nearest level, uint8, for numbers from -1 to 1."""
    levels = nf4_levels().to(x.device)
    return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def e2m1_codes(x):
    """The bits of the nearest FP4 number, uint8; a tie goes to the even code, and what is beyond 6 becomes 6."""
    levels = e2m1_levels()[:8].to(x.device)
    middles, size = (levels[1:] + levels[:-1]) / 2, x.abs().contiguous()
    below, above = torch.bucketize(size, middles), torch.bucketize(size, middles, right=True)  # they differ in a tie
    return (torch.where(below % 2 == 0, below, above) + 8 * torch.signbit(x)).to(torch.uint8)


def e4m3_codes(x):
    """The bits of the nearest FP8 number, uint8; what is beyond 448 becomes 448."""
    return x.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).view(torch.uint8)


CODES = {"nf4": nf4_codes, "e2m1": e2m1_codes, "e4m3": e4m3_codes}


def encode(tensor, scale, zero_point, scheme):
    """`quantize` on any grid: int8 integers, or uint8 codes of another grid, in the shape of `tensor`.

    Args:
        tensor: real numbers of any floating dtype.
        scale: float32, as `choose_qparams` gives it, or the parts that `store_scale` makes of it.
        zero_point: as `choose_qparams` gives it.
        scheme: a Scheme.
    """
    scale = nonzero_scale(real_scale(scale, tensor, scheme))
    if scheme.grid == "integer":
        return quantize(tensor, scale, zero_point, scheme.bits, scheme.group_size)
    return CODES[scheme.grid](tensor.float() / expand_groups(scale, tensor, scheme.group_size))


def decode(values, scale, zero_point, scheme):
    """`dequantize` on any grid: the float32 numbers that integers or codes stand for; the arguments as for `encode`."""
    scale = real_scale(scale, values, scheme)
    if scheme.grid == "integer":
        return dequantize(values, scale, zero_point, scheme.group_size)
    levels = LEVELS[scheme.grid]().to(values.device)
    return levels[values.int()] * expand_groups(scale, values, scheme.group_size)


def real_scale(scale, tensor, scheme):
    """A scale as a float32 tensor, given as that or as the parts that `store_scale` makes of it."""
    if not isinstance(scale, dict):
        return scale
    return read_scale(scale, scheme, scale_shape(tensor.shape, scheme))


def scale_shape(shape, scheme):
    """The shape of the scales that `choose_qparams` gives of a tensor of this shape."""
    if len(shape) == 2:  # by far the most frequent, and many times faster
        return qparam_shape(*shape, scheme)
    return tuple(block_range(torch.empty(shape, device="meta"), scheme)[0].shape)


# ---------------------------------------------------------------- scales


def store_scale(scale, scheme, tensor=None):
    """Scales as their format keeps them.

    Args:
        scale: float32, of the shape that `choose_qparams` gives.
        scheme: a Scheme.
        tensor: what they are the scales of, if it is at hand.

    Returns:
        {part: tensor}: "scale", and what belongs to the whole tensor.

    Raises:
        ValueError: float16 or bfloat16 cannot hold a scale: it would become 0 or infinite.
    """
    return scale_parts(scale, scheme, None if tensor is None else block_absmax(tensor, scheme))


def block_absmax(tensor, scheme):
    """The largest magnitude of each block, where the scales share numbers that depend on it; else None."""
    if scheme.scales not in SHARED_SCALES:
        return None
    low, high = block_range(tensor.float(), scheme)
    return torch.maximum(-low, high)


def scale_parts(scale, scheme, absmax=None):
    """`store_scale`, given what `block_absmax` gives. A block of zeros has no say in what all scales share."""
    if scheme.scales in SHARED_SCALES:
        absmax = scale * scheme.largest if absmax is None else absmax
        check_not_lost(scale, absmax, "a tensor")
        scale = torch.where(absmax == 0, 0.0, scale)
    if scheme.scales in ("float16", "bfloat16"):
        return {"scale": half_scale(scale, getattr(torch, scheme.scales))}
    if scheme.scales == "e8m0":
        return {"scale": power_of_two_codes(scale, scheme)}
    if scheme.scales == "e4m3":
        return e4m3_scales(scale, LARGEST_E4M3 * scheme.largest, absmax)
    return double_scales(scale) if scheme.scales == "double" else {"scale": scale}


def check_not_lost(scale, absmax, name):
    """ValueError where a block that is not all zeros got the scale of one that is: see `nonzero_scale`."""
    lost = (scale == 1) & (absmax > 0) & (absmax < 1e-37)
    if lost.any():
        raise ValueError(
            f"{name} cannot be quantized: in a block the largest magnitude is {absmax[lost][0].item():.1e}, for which "
            "float32 has no scale; set such values to 0"
        )


def read_scale(parts, scheme, shape):
    """The float32 scales, of the given shape, that `store_scale` kept as `parts`."""
    if scheme.scales == "e8m0":
        return (parts["scale"].int() << 23).view(torch.float32)  # a code is float32's own field for the exponent
    if scheme.scales == "e4m3":
        return parts["scale"].float() / parts["global_scale"]
    if scheme.scales == "double":
        deviation = dequantize(parts["scale"].int() - 128, parts["scale_scale"], 0, SCALE_SCHEME.group_size)
        # Rounding must not take a small one below 0: it would turn the signs of its block.
        return (deviation + parts["scale_mean"]).clamp(min=0).reshape(shape)
    return parts["scale"].float()


def half_scale(scale, dtype):
    """Scales in 16 bits; ValueError where one would become 0 or infinite."""
    half = scale.to(dtype)
    lost = (half == 0) | half.isinf()
    if lost.any():
        raise ValueError(f"a scale of {scale[lost][0].item():.1e} does not fit into {dtype}; keep scales in float32")
    return half


def power_of_two_codes(scale, scheme):
    """The exponents, plus 127, of the powers of two that scales become: uint8.

    The largest magnitude of a block then lies below the end of the grid, or so little above it that it is rounded down
    to it. For e2m1 that is what torchao calls EVEN, and compressed-tensors' generate_mx_scales.
    """
    beyond = {"e2m1": 7.0, "e4m3": 449.0}.get(scheme.grid, scheme.largest + 0.5)  # no longer rounded to the end
    _, end = math.frexp(scheme.largest)
    mantissa, exponent = (scale * scheme.largest).frexp()  # from 0.5 to 1, and the power of two that it is times
    exponent = exponent - end + (mantissa >= beyond / 2**end)
    if (exponent < -126).any():
        raise ValueError(f"a scale of {scale.min().item():.1e} does not fit into 8 bits of exponent")
    return (exponent + 127).clamp(max=254).to(torch.uint8)


def e4m3_scales(scale, largest, absmax):
    """Scales in FP8, and what all are divided by on the way back: it maps the largest weight to `largest`."""
    most = absmax.amax() if absmax.numel() else absmax.new_zeros(())
    global_scale = torch.where(most == 0, 1.0, (largest / most).clamp(max=torch.finfo(torch.float32).max))
    if most > 0 and most * global_scale < largest / LARGEST_E4M3 * torch.finfo(torch.float8_e4m3fn).tiny:
        raise ValueError(f"no FP8 scale is fine enough for a tensor whose largest magnitude is {most.item():.1e}")
    rounded = (scale * global_scale).clamp(max=LARGEST_E4M3).to(torch.float8_e4m3fn).float()
    rounded = torch.where(rounded == 0, E4M3_FOR_ZEROS, rounded).to(torch.float8_e4m3fn)
    return {"scale": rounded, "global_scale": global_scale}


def double_scales(scale):
    """Scales quantized to int8 in blocks of 256, after their mean is taken off so that a symmetric grid fits them.

    (QLoRA's second quantization is to floats of 8 bits, this one to integers of 8 bits, in the same blocks.)
    """
    mean, size = scale.mean(), SCALE_SCHEME.group_size
    if 0 < mean < 2.0**-132:  # where what is left of a scale without the mean has too few bits in float32
        raise ValueError(f"scales of {mean.item():.1e} on average have no scale themselves; keep scales in float32")
    deviation = (scale - mean).flatten()
    blocks = torch.nn.functional.pad(deviation.abs(), (0, -len(deviation) % size)).unflatten(0, (-1, size))
    scale_scale, zero_point = symmetric_qparams(blocks.amax(-1), SCALE_SCHEME.bits)
    values = quantize(deviation, scale_scale, zero_point, SCALE_SCHEME.bits, size)
    return {"scale": (values.int() + 128).to(torch.uint8), "scale_scale": scale_scale, "scale_mean": mean}
