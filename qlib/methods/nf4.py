"""NF4: sixteen values that are not evenly spaced, but lie where normally distributed weights do.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv:2305.14314), section 3: "4-bit NormalFloat
Quantization" and "Double Quantization".
"""

import dataclasses
import functools
import math

import torch

from qlib.affine import block_range, expand_groups, nonzero_scale, qparam_shape
from qlib.linear import keep_dtypes, weight_of
from qlib.model import quantize_model
from qlib.packing import pack, unpack
from qlib.scheme import Scheme
from qlib.tensor import QTensor, check_quantizable, quantize_tensor

ABSMAX_SCHEME = Scheme(bits=8, group_size=256)  # of the second quantization


@dataclasses.dataclass(frozen=True)
class NF4:
    """What a Scheme is for evenly spaced values.

    Args:
        block_size: weights along a row that share an absmax; the last block of a row may be shorter. (The paper cuts
            the matrix as one long row: the same where the columns are a multiple of the block size.)
        double: whether the absmaxes are quantized too.
    """

    block_size: int = 64
    double: bool = True

    def __post_init__(self):
        if self.blocks.group_size is None or type(self.double) is not bool:
            raise TypeError(f"block_size must be a whole number and double True or False, not {self}")

    @property
    def blocks(self):
        """A Scheme that cuts a matrix into the same blocks."""
        return Scheme(bits=4, group_size=self.block_size)

    def __str__(self):
        return f"NF4, per block of {self.block_size}{', double quantization' if self.double else ''}"


QLORA = NF4()


@functools.cache
def nf4_code_book():
    """The sixteen values of NF4, float32, from -1 to 1: quantiles of the normal distribution, an exact 0 among them.

    Neighbours are equally far apart in probability, so that normal weights use them about equally often: seven steps
    from the lowest up to 0, eight from 0 to the highest. The quantile of probability 1 is infinite; the outermost stop
    short of it, half of a step of 1/15 or 1/16: the mean of the two. (The paper leaves that open; its authors' code
    has 0.9677083.)
    """
    end = (29 / 30 + 31 / 32) / 2
    below, above = (torch.special.ndtri(torch.linspace(0.5, end, n, dtype=torch.float64)) for n in (8, 9))
    return (torch.cat([-below.flip(0), above[1:]]) / above[-1]).float()


class NF4Tensor:
    """A matrix in NF4: packed codes, and the absmax that the values of each block are multiplied by.

    Args:
        parts: {"packed": uint8, (rows, columns / 2), "absmax": float32, (rows, blocks)}. With double
            quantization "absmax" is uint8, in one row, and beside it are "absmax_scale", float32, one for 256 of them,
            and "absmax_mean", float32, a single number.
        scheme: an NF4.
        shape: (rows, columns).
    """

    def __init__(self, parts, scheme, shape):
        self.parts, self.scheme, self.shape = parts, scheme, torch.Size(shape)

    @property
    def absmax(self):
        """The largest magnitude of each block, float32, (rows, blocks); near to it, after double quantization."""
        absmax = self.parts["absmax"]
        if self.scheme.double:
            zero = torch.zeros((), dtype=torch.int8)
            deviation = QTensor.from_packed(absmax, self.parts["absmax_scale"], zero, ABSMAX_SCHEME, absmax.shape)
            # Rounding must not take a small one below 0: it would turn the signs of its block.
            absmax = (deviation.dequantize() + self.parts["absmax_mean"]).clamp(min=0)
        return absmax.reshape(qparam_shape(*self.shape, self.scheme.blocks))

    def dequantize(self):
        """The real numbers that the codes stand for, float32, (rows, columns)."""
        codes = unpack(self.parts["packed"], 4, self.shape[-1])
        values = nf4_code_book().to(codes.device)[codes.long()]
        return values * expand_groups(self.absmax, values, self.scheme.block_size)

    @property
    def nbytes(self):
        return sum(part.nbytes for part in self.parts.values())

    @property
    def bits_per_weight(self):
        """Bits that one value costs in all: 4.5 in blocks of 64, and 4.127 with double quantization."""
        return 8 * self.nbytes / max(self.shape.numel(), 1)


def nf4_quantize(weight, scheme=QLORA, name="weight"):
    """Quantize a matrix of any floating dtype to an NF4Tensor; raises what `quantize_tensor` raises."""
    check_quantizable(weight, scheme.blocks, name)
    weight = weight.detach().float()
    low, high = block_range(weight, scheme.blocks)
    absmax, book = torch.maximum(-low, high), nf4_code_book()
    in_unit = weight / expand_groups(nonzero_scale(absmax), weight, scheme.block_size)
    codes = torch.bucketize(in_unit.contiguous(), (book[1:] + book[:-1]) / 2)
    parts = {"packed": pack(codes, 4).clone(), "absmax": absmax}
    return NF4Tensor(parts | (quantized_absmax(absmax) if scheme.double else {}), scheme, weight.shape)


def quantized_absmax(absmax):
    """The parts that stand for the absmaxes after double quantization.

    Absmaxes are positive: their mean is taken off, so that a symmetric grid fits them. (The paper's second
    quantization is to floats of 8 bits, this one to integers of 8 bits, in the same blocks of 256.)
    """
    deviation = quantize_tensor((absmax - absmax.mean()).flatten(), ABSMAX_SCHEME)
    return {"absmax": deviation.packed, "absmax_scale": deviation.scale, "absmax_mean": absmax.mean()}


class NF4Linear(torch.nn.Module):
    """A linear layer that keeps its weight in NF4, as buffers, and computes in its input's dtype; see QLinear.

    Args:
        in_features, out_features, bias, device: as for QLinear.
        scheme: an NF4.
    """

    def __init__(self, in_features, out_features, scheme=QLORA, bias=True, device=None):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        for part, values in empty_parts(out_features, in_features, scheme, device).items():
            self.register_buffer(part, values)
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_linear(cls, linear, scheme=QLORA, name=None):
        """Quantize a torch.nn.Linear, or transformers' Conv1D; see `QLinear.from_linear`."""
        name = name or type(linear).__name__
        weight = nf4_quantize(weight_of(linear, name), scheme, f"{name}.weight")
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, scheme, bias=False, device="meta")
        for part, values in weight.parts.items():
            setattr(layer, part, values)
        layer.bias = None if linear.bias is None else linear.bias.detach().clone()
        return layer.train(linear.training)

    @property
    def qtensor(self):
        """The weight as an NF4Tensor, (out_features, in_features), on the layer's own buffers."""
        parts = {part: buffer for part, buffer in self.named_buffers() if part != "bias"}
        return NF4Tensor(parts, self.scheme, (self.out_features, self.in_features))

    @property
    def weight(self):
        """The real numbers of the weight, float32, made anew at each call."""
        return self.qtensor.dequantize()

    def forward(self, x):
        """x: (..., in_features) of a floating dtype; returns (..., out_features) of the same dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def _apply(self, fn, recurse=True):
        """Follow the model to another device or dtype, but keep what makes the absmaxes float32."""
        before = self.qtensor.parts
        super()._apply(fn, recurse)
        keep_dtypes(self, before)
        return self

    def extra_repr(self):
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self.scheme}, {self.qtensor.bits_per_weight:.3f} bits per weight"


def empty_parts(rows, columns, scheme, device=None):
    """The parts of an NF4Tensor of zeros."""
    blocks = qparam_shape(rows, columns, scheme.blocks)
    parts = {"packed": torch.zeros(rows, (columns + 1) // 2, dtype=torch.uint8, device=device)}
    if not scheme.double:
        return parts | {"absmax": torch.zeros(blocks, dtype=torch.float32, device=device)}
    count = math.prod(blocks)
    return parts | {
        "absmax": torch.zeros(count, dtype=torch.uint8, device=device),
        "absmax_scale": torch.ones(-(-count // ABSMAX_SCHEME.group_size), dtype=torch.float32, device=device),
        "absmax_mean": torch.zeros((), dtype=torch.float32, device=device),
    }


def nf4_model(model, scheme=QLORA, ignore=("lm_head",)):
    """Quantize a model's linear layers to NF4Linear, in place, as `qlib.quantize_model` does; returns a Report."""

    def quantize_layer(layer, _, name):
        return NF4Linear.from_linear(layer, scheme, name)

    return quantize_model(model, scheme.blocks, ignore, quantize_layer=quantize_layer)
