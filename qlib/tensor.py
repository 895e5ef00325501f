"""QTensor: a tensor as quantization leaves it - packed integers, their scales and zero points, and the scheme."""

import math

import torch

from qlib.affine import (
    asymmetric_qparams,
    block_range,
    choose_qparams,
    dequantize,
    expand_groups,
    qparam_shape,
    quant_range,
    symmetric_qparams,
)
from qlib.packing import pack, unpack
from qlib.scheme import Scheme

# Up to this magnitude neither the width of a range nor a value half a step outside it overflows float32.
LARGEST = torch.finfo(torch.float32).max / 2

# Values that are quantized at a time: a megabyte of float32, which a core has in its own cache.
BLOCK_SIZE = 64 * 4096


class QTensor:
    """A quantized tensor. Its integers are kept packed: at 2 bits, four of them in a byte.

    Args:
        values: int8 tensor of values in quant_range(scheme.bits).
        scale: float32, of shape (), (rows, 1), (1, columns) or (rows, groups), as `choose_qparams` gives it.
        zero_point: int8, of the shape of `scale`, or a single 0 in symmetric mode.
        scheme: the Scheme it was quantized with.
    """

    def __init__(self, values, scale, zero_point, scheme):
        qmin, _ = quant_range(scheme.bits)
        # Packing knows no sign: count up from the smallest value, so that -2 … 1 is written as 0 … 3.
        packed = pack(torch.atleast_1d(values).to(torch.int16) - qmin, scheme.bits)
        # What pack returns may be a view of more memory than it shows; a copy takes the bytes it shows.
        self.packed = packed.clone(memory_format=torch.contiguous_format)
        self.scale = scale
        self.zero_point = zero_point
        self.scheme = scheme
        self.shape = values.shape

    @classmethod
    def from_packed(cls, packed, scale, zero_point, scheme, shape):
        """A QTensor of `shape` from integers that are packed already, as a file holds them.

        Raises:
            ValueError: a part has not the dtype or the shape that `scheme` and `shape` ask for.
        """
        qtensor = cls.__new__(cls)
        qtensor.packed, qtensor.scale, qtensor.zero_point = packed, scale, zero_point
        qtensor.scheme, qtensor.shape = scheme, torch.Size(shape)
        check_parts(qtensor)
        return qtensor

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What there is to store, by name: the packed integers, the scales and, in asymmetric mode, the zero points."""
        parts = {"packed": self.packed, "scale": self.scale}
        return parts if self.scheme.symmetric else parts | {"zero_point": self.zero_point}

    @property
    def values(self) -> torch.Tensor:
        """The integers, int8, in the shape of the original tensor (unpacked anew at each call)."""
        qmin, _ = quant_range(self.scheme.bits)
        count = self.shape[-1] if self.shape else 1
        codes = unpack(self.packed, self.scheme.bits, count)
        return (codes.to(torch.int16) + qmin).to(torch.int8).reshape(self.shape)

    def dequantize(self) -> torch.Tensor:
        """The real numbers that the integers stand for, float32, in the shape of the original tensor."""
        height = max(1, BLOCK_SIZE // max(1, self.shape[1:].numel()))
        if len(self.shape) < 2 or self.shape[0] <= height:
            values = self.values
            group_size = self.scheme.group_size
            scale, zero_point = (expand_groups(q, values, group_size) for q in (self.scale, self.zero_point))
            return dequantize(values, scale, zero_point)
        # Some rows at a time: what lies between bytes and real numbers is then small, and stays in the cache.
        out = torch.empty(self.shape, device=self.packed.device)
        for first in range(0, self.shape[0], height):
            out[first : first + height] = self.rows(first, first + height).dequantize()
        return out

    def rows(self, first, last):
        """The QTensor of the rows from `first` to before `last`, on the same memory."""
        count = self.shape[0]
        packed, scale, zero_point = (
            part[first:last] if part.ndim and part.shape[0] == count else part
            for part in (self.packed, self.scale, self.zero_point)
        )
        return QTensor.from_packed(packed, scale, zero_point, self.scheme, (len(packed), *self.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of the packed integers, the scales and, in asymmetric mode, the zero points."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits that one value costs in all, its share of the scales and zero points counted."""
        return 8 * self.nbytes / max(self.shape.numel(), 1)

    def __repr__(self):
        return f"QTensor({tuple(self.shape)}, {self.scheme}, {self.nbytes} bytes)"


def quantize_tensor(tensor, scheme, name="tensor"):
    """Quantize `tensor` as `scheme` says.

    Args:
        tensor: real numbers of any floating dtype; (rows, columns), or any shape for per tensor and per row.
        scheme: a Scheme.
        name: what error messages call the tensor.

    Returns:
        a QTensor.

    Raises:
        TypeError: `tensor` is no floating-point tensor, or `scheme` no Scheme.
        ValueError: a value is NaN, infinite or too large for float32 to calculate with; the message gives `name`
            and the index of the first.
    """
    check_quantizable(tensor, scheme, name)
    tensor = tensor.detach()  # a scale with a gradient would keep the whole tensor alive
    if tensor.ndim > 1 and tensor.numel() > BLOCK_SIZE:
        return quantize_blocks(tensor, scheme)
    scale, zero_point = choose_qparams(tensor, scheme)
    packed = quantize_packed(torch.atleast_1d(tensor).float(), scale, zero_point, scheme)
    return QTensor.from_packed(packed, scale, zero_point, scheme, tensor.shape)


def quantize_blocks(tensor, scheme):
    """`quantize_tensor` for a large tensor, a few rows at a time; the result is the same.

    What is made on the way stays in the cache, and the next block takes the same memory. So a few megabytes do beside
    the result, where several copies of the whole tensor, one of them in int64, would be made.
    """
    height = max(1, BLOCK_SIZE * tensor.shape[0] // tensor.numel())
    qparams = [] if scheme.axis == 0 else [qparams_of_all(tensor.split(height), scheme)]
    octets = (tensor.shape[-1] * scheme.bits + 7) // 8
    packed = torch.empty((*tensor.shape[:-1], octets), dtype=torch.uint8, device=tensor.device)
    for block, place in zip(tensor.split(height), packed.split(height)):
        block = block.float()
        if scheme.axis == 0:
            qparams.append(choose_qparams(block, scheme))
        place.copy_(quantize_packed(block, *qparams[-1], scheme))
    scale, zero_point = qparams[0]
    if scheme.axis == 0:
        scale = torch.cat([scale for scale, _ in qparams])
        zero_point = zero_point if scheme.symmetric else torch.cat([zero_point for _, zero_point in qparams])
    return QTensor.from_packed(packed, scale, zero_point, scheme, tensor.shape)


def qparams_of_all(blocks, scheme):
    """What `choose_qparams` gives for all the blocks together, per tensor or per column."""
    lows, highs = zip(*(block_range(block.float(), scheme) for block in blocks))
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    if scheme.symmetric:
        return symmetric_qparams(torch.maximum(-low, high), scheme.bits)
    return asymmetric_qparams(low, high, scheme.bits)


def quantize_packed(block, scale, zero_point, scheme):
    """`quantize` and `pack` in one, to the bit, for a float32 block (…, columns): uint8, (…, octets).

    The arithmetic is done in place. Values that fill whole bytes together, four at 2 bits, eight in three bytes at 3,
    are put together while they are floats: there a shift is a product, and float32 holds 24 bits exactly.
    """
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
        # What pack returns may be a view of more memory than it shows; a copy takes the bytes it shows.
        return pack(codes.to(torch.uint8), scheme.bits).clone(memory_format=torch.contiguous_format)
    units = codes.unflatten(-1, (-1, values))
    word = units[..., 0].clone() if values > 1 else units[..., 0]
    for i in range(1, values):
        word.add_(units[..., i], alpha=2 ** (scheme.bits * i))
    if octets == 1:
        return word.to(torch.uint8).contiguous()  # of a transposed weight, such as a Conv1D's, it would not be
    return word.to(torch.int32).unsqueeze(-1).view(torch.uint8)[..., :octets].clone().flatten(-2)


def check_quantizable(tensor, scheme, name):
    """Raise one clear error unless `tensor` holds finite real numbers and `scheme` is a Scheme."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a qlib.Scheme, such as Scheme(bits=8), not {scheme!r}")
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = f"a {tensor.dtype} tensor" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(f"{name} must be a tensor of floating-point numbers, not {kind}")
    if not tensor.numel():
        return
    # The smallest and the largest value tell it, and no copy is made; both are NaN where any value is.
    ends = torch.stack(tensor.detach().aminmax() if tensor.itemsize > 1 else tensor.detach().float().aminmax())
    if not (ends.float().abs() <= LARGEST).all():
        usable = tensor.float().abs() <= LARGEST
        index = tuple((~usable).nonzero()[0].tolist())
        raise ValueError(
            f"{name} cannot be quantized: the value at {list(index)} is {tensor[index].item()}; "
            f"values must be finite and no larger than {LARGEST:.1e}"
        )


def check_parts(qtensor):
    """Raise one clear error unless the parts of a QTensor are those of its scheme and shape."""
    shape, scheme = qtensor.shape, qtensor.scheme
    rows, columns = (shape[:-1], shape[-1]) if shape else ((), 1)
    packed_shape = (*rows, (columns * scheme.bits + 7) // 8)
    if qtensor.packed.dtype != torch.uint8 or qtensor.packed.shape != packed_shape:
        raise ValueError(
            f"packed is {qtensor.packed.dtype} of shape {tuple(qtensor.packed.shape)}; "
            f"{tuple(shape)} at {scheme.bits} bits needs torch.uint8 of {packed_shape}"
        )
    if len(shape) == 2:  # by far the most frequent, and many times faster
        scale_shape = qparam_shape(*shape, scheme)
    else:
        scale_shape = block_range(torch.empty(shape, device="meta"), scheme)[0].shape
    for part in qtensor.parts.keys() - {"packed"}:
        found = tuple(qtensor.parts[part].shape)
        if found != scale_shape:
            raise ValueError(f"{part} is of shape {found}; {tuple(shape)}, {scheme}, needs {tuple(scale_shape)}")
    if not qtensor.scale.is_floating_point():
        raise ValueError(f"scale is {qtensor.scale.dtype}, not a floating-point tensor")


def plain_tensors(tensors):
    """{name: tensor or QTensor} with each QTensor "w" taken apart: pairs such as ("w.packed", tensor)."""
    for name, tensor in tensors.items():
        if isinstance(tensor, QTensor):
            yield from ((f"{name}.{part}", stored) for part, stored in tensor.parts.items())
        else:
            yield name, tensor
