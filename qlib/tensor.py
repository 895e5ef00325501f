"""QTensor: a tensor as quantization leaves it - packed codes, their scales and zero points, and the scheme."""

import functools
import math

import torch

from qlib.affine import block_range, choose_qparams, quant_range
from qlib.grids import SCALE_SCHEME, check_not_lost, decode, encode, read_scale, scale_shape, store_scale
from qlib.kernels.quantize import is_large, quantize_in_blocks, row_blocks
from qlib.packing import pack, unpack
from qlib.scheme import Scheme

# Up to this magnitude neither the width of a range nor a value half a step outside it overflows float32.
LARGEST = torch.finfo(torch.float32).max / 2

# The parts of a scale in each format, and their dtypes: see grids.store_scale.
SCALE_PARTS = {
    "float32": {"scale": torch.float32},
    "float16": {"scale": torch.float16},
    "bfloat16": {"scale": torch.bfloat16},
    "e8m0": {"scale": torch.uint8},
    "e4m3": {"scale": torch.float8_e4m3fn, "global_scale": torch.float32},
    "double": {"scale": torch.uint8, "scale_scale": torch.float32, "scale_mean": torch.float32},
}


class QTensor:
    """A quantized tensor. Its codes are kept packed: at 2 bits, four of them in a byte.

    Args:
        values: int8 tensor of values in quant_range(scheme.bits); of another grid than the integers, uint8 codes.
        scale: float32, of shape (), (rows, 1), (1, columns) or (rows, groups), as `choose_qparams` gives it; or the
            parts of it, {name: tensor}, as grids.store_scale gives them.
        zero_point: int8, of the shape of `scale`, or a single 0 in symmetric mode.
        scheme: the Scheme it was quantized with.
    """

    def __init__(self, values, scale, zero_point, scheme):
        # Packing knows no sign: count up from the smallest value, so that -2 … 1 is written as 0 … 3.
        codes = torch.atleast_1d(values).to(torch.int16) - smallest_value(scheme)
        # What pack returns may be a view of more memory than it shows; a copy takes the bytes it shows.
        self.packed = pack(codes, scheme.bits).clone(memory_format=torch.contiguous_format)
        self.scale_parts = scale if isinstance(scale, dict) else store_scale(scale, scheme)
        self.zero_point = zero_point
        self.scheme = scheme
        self.shape = values.shape

    @classmethod
    def from_packed(cls, packed, scale, zero_point, scheme, shape):
        """A QTensor of `shape` from codes that are packed already, as a file holds them; the scale as for QTensor.

        Raises:
            ValueError: a part has not the dtype or the shape that `scheme` and `shape` ask for.
        """
        qtensor = cls.__new__(cls)
        qtensor.packed, qtensor.zero_point = packed, zero_point
        qtensor.scale_parts = scale if isinstance(scale, dict) else store_scale(scale, scheme)
        qtensor.scheme, qtensor.shape = scheme, torch.Size(shape)
        check_parts(qtensor)
        return qtensor

    @classmethod
    def from_parts(cls, parts, scheme, shape):
        """A QTensor of `shape` from its `parts`; raises what `from_packed` does, and KeyError where one is missing."""
        zero_point = torch.zeros((), dtype=torch.int8) if scheme.symmetric else parts["zero_point"]
        scale = {name: parts[name] for name in SCALE_PARTS[scheme.scales]}
        return cls.from_packed(parts["packed"], scale, zero_point, scheme, shape)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What there is to store, by name: the packed codes, the scales and, in asymmetric mode, the zero points."""
        parts = {"packed": self.packed} | self.scale_parts
        return parts if self.scheme.symmetric else parts | {"zero_point": self.zero_point}

    @property
    def scale(self) -> torch.Tensor:
        """The scales, whatever format they are kept in: float32, in the shape that `choose_qparams` gives."""
        return read_scale(self.scale_parts, self.scheme, scale_shape(self.shape, self.scheme))

    @property
    def values(self) -> torch.Tensor:
        """The integers, int8, or another grid's codes, uint8, in the tensor's shape (unpacked anew at each call)."""
        count = self.shape[-1] if self.shape else 1
        return values_of(unpack(self.packed, self.scheme.bits, count), self.scheme).reshape(self.shape)

    def dequantize(self) -> torch.Tensor:
        """The real numbers that the codes stand for, float32, in the shape of the original tensor."""
        scale, zero_point, scheme = self.scale, self.zero_point, self.scheme
        if not is_large(self.shape):
            return decode(self.values, scale, zero_point, scheme)
        # Some rows at a time: what lies between bytes and real numbers is then small, and stays in the cache.
        out = torch.empty(self.shape, dtype=torch.float32, device=self.packed.device)
        for rows in row_blocks(self.shape):
            values = values_of(unpack(self.packed[rows], scheme.bits, self.shape[-1]), scheme)
            qparams = (part[rows] if part.ndim and len(part) == len(out) else part for part in (scale, zero_point))
            out[rows] = decode(values, *qparams, scheme)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, the scales and, in asymmetric mode, the zero points."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits that one value costs in all, its share of the scales and zero points counted."""
        return 8 * self.nbytes / max(self.shape.numel(), 1)

    def __repr__(self):
        return f"QTensor({tuple(self.shape)}, {self.scheme}, {self.nbytes} bytes)"


def large_in_blocks(quantize):
    """A quantizer of tensors that does the large ones some rows at a time, with the same result; its scales checked."""

    @functools.wraps(quantize)
    def quantize_tensor(tensor, scheme, name="tensor"):
        if not isinstance(tensor, torch.Tensor) or not is_large(tensor.shape):
            qtensor = quantize(tensor, scheme, name)
        else:
            check_quantizable(tensor, scheme, name)
            qtensor = QTensor.from_packed(*quantize_in_blocks(tensor.detach(), scheme), scheme, tensor.shape)
        check_scale(qtensor.scale, tensor.detach(), scheme, name)
        return qtensor

    return quantize_tensor


@large_in_blocks
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
            and the index of the first. Or a scale does not fit into its format.
    """
    check_quantizable(tensor, scheme, name)
    tensor = tensor.detach()  # a scale with a gradient would keep the whole tensor alive
    scale, zero_point = choose_qparams(tensor, scheme)
    scale = store_scale(scale, scheme, tensor)
    values = encode(tensor, scale, zero_point, scheme)
    return QTensor(values, scale, zero_point, scheme)


def stored_qparams(tensor, scheme):
    """What a method starts from that changes one of them: the parts of the scales as the scheme keeps them, the float32
    scales that these stand for, and the zero points."""
    scale, zero_point = choose_qparams(tensor, scheme)
    parts = store_scale(scale, scheme, tensor)
    return parts, read_scale(parts, scheme, scale.shape), zero_point


def fake_quantize(tensor, scheme):
    """Quantize and dequantize at once: `tensor` as it would be after a trip through its codes, in float32.

    Args:
        tensor: real numbers of any floating dtype, in a shape that fits `scheme`; it is not checked.
        scheme: a Scheme.
    """
    scale, zero_point = choose_qparams(tensor, scheme)
    scale = store_scale(scale, scheme, tensor)
    return decode(encode(tensor, scale, zero_point, scheme), scale, zero_point, scheme)


def check_quantizable(tensor, scheme, name):
    """Raise one clear error unless `tensor` holds finite real numbers and `scheme` is a Scheme."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a qlib.Scheme, such as Scheme(bits=8), not {scheme!r}")
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        kind = f"a {tensor.dtype} tensor" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(f"{name} must be a tensor of floating-point numbers, not {kind}")
    if tensor.is_meta:
        raise ValueError(
            f"{name} is on the meta device, where a tensor has no values: the model was built without its weights, or "
            "accelerate has offloaded them; load it whole first"
        )
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


def check_scale(scale, tensor, scheme, name):
    """Raise one clear error where the values of a block are so small that float32 has no scale for them.

    They got 1, as a block of zeros does: see nonzero_scale.
    """
    if not (scale == 1).any():
        return
    low, high = block_range(tensor, scheme)
    check_not_lost(scale, torch.maximum(-low, high).float(), name)


def check_parts(qtensor):
    """Raise one clear error unless the parts of a QTensor are those of its scheme and shape."""
    shape, scheme = qtensor.shape, qtensor.scheme
    expected = part_shapes(shape, scheme)
    if qtensor.packed.dtype != torch.uint8 or qtensor.packed.shape != expected["packed"]:
        raise ValueError(
            f"packed is {qtensor.packed.dtype} of shape {tuple(qtensor.packed.shape)}; "
            f"{tuple(shape)} at {scheme.bits} bits needs torch.uint8 of {expected['packed']}"
        )
    for name in qtensor.parts.keys() - {"packed"}:
        found = tuple(qtensor.parts[name].shape)
        if found != expected[name]:
            raise ValueError(f"{name} is of shape {found}; {tuple(shape)}, {scheme}, needs {expected[name]}")
    for name, dtype in SCALE_PARTS[scheme.scales].items():
        check_scale_dtype(name, qtensor.scale_parts[name].dtype, dtype, scheme)


def check_scale_dtype(name, found, dtype, scheme):
    """Scales that somebody rounded after they were chosen are still scales: what is stored says what they cost."""
    if scheme.scales == "float32" and not found.is_floating_point:
        raise ValueError(f"{name} is {found}, not a floating-point tensor")
    if scheme.scales != "float32" and found != dtype:
        raise ValueError(f"{name} is {found}; {scheme}, keeps it as {dtype}")


def part_dtypes(scheme):
    """{name: dtype} of the parts of a QTensor of a scheme."""
    zero_point = {} if scheme.symmetric else {"zero_point": torch.int8}
    return {"packed": torch.uint8} | SCALE_PARTS[scheme.scales] | zero_point


def part_shapes(shape, scheme):
    """The shape of each part of a QTensor of a shape and scheme, {part: shape}, the zero point among them."""
    rows, columns = (tuple(shape[:-1]), shape[-1]) if len(shape) else ((), 1)
    scale = scale_shape(shape, scheme)
    shapes = {"packed": (*rows, (columns * scheme.bits + 7) // 8), "scale": scale, "zero_point": scale}
    if scheme.scales == "double":  # one row of scales, for blocks of them
        count = math.prod(scale)
        shapes |= {"scale": (count,), "scale_scale": (-(-count // SCALE_SCHEME.group_size),), "scale_mean": ()}
    return shapes | ({"global_scale": ()} if scheme.scales == "e4m3" else {})


def stored_bytes(shape, scheme):
    """The bytes of a QTensor of a shape and scheme, no tensor needed: `nbytes`, told beforehand."""
    shapes = part_shapes(shape, scheme)
    return sum(math.prod(shapes[part]) * dtype.itemsize for part, dtype in part_dtypes(scheme).items())


def smallest_value(scheme):
    """The value whose code is 0: the smallest integer, or the first of a table of levels."""
    return quant_range(scheme.bits)[0] if scheme.grid == "integer" else 0


def values_of(codes, scheme):
    """Unpacked codes, uint8, as a QTensor's values."""
    return (codes.to(torch.int16) + smallest_value(scheme)).to(torch.int8) if scheme.grid == "integer" else codes


def plain_tensors(tensors):
    """{name: tensor or QTensor} with each QTensor "w" taken apart: pairs such as ("w.packed", tensor)."""
    for name, tensor in tensors.items():
        if isinstance(tensor, QTensor):
            yield from ((f"{name}.{part}", stored) for part, stored in tensor.parts.items())
        else:
            yield name, tensor
