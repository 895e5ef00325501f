"""What the formats of other systems share: a code counts up from the smallest integer, low bits first.

So the integer -8 is the code 0 at 4 bits. What cannot be written is refused in words, with the name of the weight.
"""

import torch

from qlib.affine import quant_range
from qlib.packing import pack, unpack
from qlib.tensor import QTensor

# ---------------------------------------------------------------- words of 32 bits


def words_of(octets):
    """Bytes as words of 32 bits, the first byte in the lowest bits; zeros fill up the last word.

    Args:
        octets: uint8 tensor of shape (..., count).

    Returns:
        int32 tensor of shape (..., ceil(count / 4)), contiguous.
    """
    count = octets.shape[-1]
    words = torch.zeros((*octets.shape[:-1], (count + 3) // 4), dtype=torch.int32, device=octets.device)
    words.view(torch.uint8)[..., :count] = octets  # in memory, too, the lowest byte of a word is the first
    return words


def octets_of(words):
    """Words of 32 bits as bytes, the lowest bits first: the inverse of `words_of`, (..., count) to (..., 4 * count)."""
    in_order = torch.as_tensor(words, dtype=torch.int32).clone(memory_format=torch.contiguous_format)
    return in_order.view(torch.uint8)


def pack_words(codes, bits):
    """Pack each row as `pack` does, into words of 32 bits: the layout "pack-quantized" of compressed-tensors.

    A value goes on in the next word where 32 is no multiple of `bits`. Versions before 0.18 of compressed-tensors left
    the rest of a word unused instead, so at 3, 5, 6 and 7 bits they read other numbers.
    Source: compressed_tensors/compressors/pack_quantized/helpers.py, pack_to_int32.

    Args:
        codes: integers from 0 to 2**bits - 1, shape (..., count).
        bits: width of a value, 1 to 8.

    Returns:
        int32 tensor of shape (..., ceil(count * bits / 32)).
    """
    return words_of(pack(codes, bits))


def unpack_words(words, bits, count=None):
    """Read the rows that `pack_words` packed: int32 of shape (..., words) to uint8 of shape (..., count).

    Args:
        words, bits: as `pack_words` gives and takes them.
        count: values in a row; None for as many as the words hold whole.

    Raises:
        ValueError: a row holds fewer than `count` values.
    """
    return unpack(octets_of(words), bits, count)


# ---------------------------------------------------------------- the parts of a weight


def zero_codes(qtensor):
    """The zero points as codes, which count up from the smallest integer: uint8 of shape (outputs, groups)."""
    qmin, _ = quant_range(qtensor.scheme.bits)
    codes = (qtensor.zero_point.to(torch.int16) - qmin).to(torch.uint8)
    return codes.to(qtensor.scale.device).broadcast_to(scale_rows(qtensor).shape)


def scale_rows(qtensor):
    """The scales as a matrix (outputs, groups); a scale of the whole tensor is repeated for each output."""
    return qtensor.scale.broadcast_to(qtensor.shape[0], qtensor.scale.shape[-1] if qtensor.scale.ndim else 1)


def from_parts(octets, scale, zeros, scheme, shape):
    """A QTensor from packed codes, scales and zero points as codes, (outputs, groups), or None for the middle code."""
    qmin, _ = quant_range(scheme.bits)
    zero_point = torch.tensor(0, dtype=torch.int8)
    if zeros is not None:
        zero_points = (zeros.to(torch.int16) + qmin).to(torch.int8).contiguous()
        if not scheme.symmetric:
            zero_point = zero_points
        elif zero_points.any():
            raise ValueError(f"there are zero points other than 0: the weight is not {scheme}")
    octets = octets.clone(memory_format=torch.contiguous_format)
    return QTensor.from_packed(octets, scale.float().contiguous(), zero_point, scheme, shape)


def required(tensors, key):
    """tensors[key], or one clear error."""
    if key not in tensors:
        raise ValueError(f"{key!r} is missing among {sorted(tensors)}")
    return tensors[key]


def rounded_scale(scale, dtype, name):
    """`scale` in `dtype`; ValueError where rounding moves one by over 1 percent: it is too small or too large."""
    rounded = scale.to(dtype)
    moved = (rounded.float() - scale).abs() > 0.01 * scale.abs()  # true of infinity as well
    if moved.any():
        raise ValueError(
            f"{name}: a scale of {scale[moved][0].item():.1e} becomes {rounded[moved][0].item():.1e} in {dtype}"
        )
    return rounded


def refusal(name, system, why):
    return ValueError(f"{name} cannot be written for {system}: {why}")


def check_grid(qtensor, system, name):
    """Raise unless the weight is a matrix whose scales belong to its rows, and whose zero points are whole numbers."""
    if len(qtensor.shape) != 2:
        raise refusal(name, system, f"it is no matrix but of shape {tuple(qtensor.shape)}")
    if qtensor.scheme.grid != "integer":
        raise refusal(name, system, f"the format has integers, and no {qtensor.scheme}")
    if qtensor.scheme.axis == 1:
        raise refusal(name, system, "the format has no scale per column")
    if qtensor.zero_point.is_floating_point():
        raise refusal(
            name, system, "its zero points are fractions; hqq_quantize(…, zero_dtype=torch.int8) makes whole ones"
        )


def check_full_groups(qtensor, system, name):
    """Raise unless the groups fill the rows."""
    inputs, group_size = qtensor.shape[1], qtensor.scheme.group_size
    if group_size is not None and inputs % group_size:
        raise refusal(
            name,
            system,
            f"its {inputs} inputs are no multiple of the group size {group_size}, and the format has no shorter last "
            "group; choose a group size that divides them, or leave the layer out with ignore",
        )
