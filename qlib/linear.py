"""Quantized layers: QLinear, whose weight alone is quantized, and W8A8 layers that multiply small integers.

The arithmetic of W8A8 is that of Jacob et al. 2018 (arXiv:1712.05877), section 2.
"""

import torch

from qlib.affine import (
    asymmetric_qparams,
    channel_range,
    dequantize,
    expand_groups,
    qparam_shape,
    quant_range,
    quantize,
)
from qlib.kernels import choose as kernels
from qlib.packing import unpack
from qlib.scheme import INT8
from qlib.tensor import QTensor, quantize_tensor

# ---------------------------------------------------------------- weight-only


class QLinear(torch.nn.Module):
    """A linear layer that keeps its weight as packed integers and computes in its input's dtype (W8A16 and its kin).

    The weight is a set of buffers and no Parameter: integers have no gradient, and an optimizer must not touch them.
    The scales stay float32 when the model is moved to half precision, where a small one would become zero.

    Args:
        in_features, out_features: as for torch.nn.Linear.
        scheme: of the weight, of shape (out_features, in_features).
        bias: whether there is one.
        device: where the buffers are made; they are filled by `from_linear` or `load_state_dict`.
    """

    def __init__(self, in_features, out_features, scheme, bias=True, device=None):
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.plan = kernels.plan_for(scheme, in_features)
        shape = qparam_shape(out_features, in_features, scheme)
        packed_shape = (out_features, (in_features * scheme.bits + 7) // 8)
        self.register_buffer("packed", torch.zeros(packed_shape, dtype=torch.uint8, device=device))
        # Whatever the default dtype: transformers changes it while it builds a model, and casts what it reads to it.
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32, device=device))
        zero_point = None if scheme.symmetric else torch.zeros(shape, dtype=torch.int8, device=device)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    def from_linear(cls, linear, scheme, name=None):
        """Quantize a layer.

        Args:
            linear: a torch.nn.Linear, or transformers' Conv1D, whose weight lies transposed.
            scheme: a Scheme.
            name: what error messages call the layer.

        Raises:
            TypeError, ValueError: the layer is of another kind, or its weight cannot be quantized.
        """
        name = name or type(linear).__name__
        qtensor = quantize_tensor(weight_of(linear, name), scheme, f"{name}.weight")
        return cls.from_qtensor(qtensor, linear.bias).train(linear.training)

    @classmethod
    def from_qtensor(cls, qtensor, bias=None):
        """A layer on a weight that is quantized already, by whatever method; it shares the weight's memory.

        Args:
            qtensor: a QTensor of shape (out_features, in_features).
            bias: (out_features,) or None; it is copied.
        """
        outputs, inputs = qtensor.shape
        layer = cls(inputs, outputs, qtensor.scheme, bias=False, device="meta")
        layer.packed, layer.scale = qtensor.packed, qtensor.scale
        layer.zero_point = None if qtensor.scheme.symmetric else qtensor.zero_point
        layer.bias = None if bias is None else bias.detach().clone()
        return layer

    @property
    def weight(self):
        """The real numbers of the weight, float32, made anew at each call: for code that looks at it, as T5's does."""
        return self.qtensor.dequantize()

    @property
    def qtensor(self):
        """The weight as a QTensor, (out_features, in_features), on the layer's own buffers."""
        zero_point = torch.zeros((), dtype=torch.int8) if self.zero_point is None else self.zero_point
        shape = (self.out_features, self.in_features)
        return QTensor.from_packed(self.packed, self.scale, zero_point, self.scheme, shape)

    def forward(self, x):
        """x: (..., in_features) of a floating dtype; returns (..., out_features) of the same dtype."""
        kept = self._buffers  # to ask the module for each takes as long as the arithmetic of a small layer
        weight = (kept["packed"], kept["scale"], kept["zero_point"])
        return kernels.linear(x, weight, kept["bias"], self.scheme, self.in_features, self.plan)

    def _apply(self, fn, recurse=True):
        """Follow the model to another device or dtype, but keep the dtypes of the scales and the zero points."""
        before = {"scale": self.scale, "zero_point": self.zero_point}
        super()._apply(fn, recurse)
        keep_dtypes(self, before)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        """Make room for zero points that are fractions, as HQQ's are: copied into integers they would be cut off."""
        zero_point = state_dict.get(f"{prefix}zero_point")
        if self.zero_point is not None and zero_point is not None and zero_point.is_floating_point():
            self.zero_point = self.zero_point.to(zero_point.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self):
        bits, fractions = self.qtensor.bits_per_weight, ""
        if self.zero_point is not None and self.zero_point.is_floating_point():
            fractions = f"{str(self.zero_point.dtype).removeprefix('torch.')} zero points, "
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"W{self.scheme.bits}A16, {self.scheme}, {fractions}{bits:.3f} bits per weight"
        )


def keep_dtypes(module, before):
    """Give buffers that were cast the dtypes back that they had, on the device where they are now.

    Args:
        module: a torch.nn.Module.
        before: {name: the buffer as it was, or None}.
    """
    for name, old in before.items():
        new = getattr(module, name)
        if old is not None and new.dtype != old.dtype:
            setattr(module, name, torch.empty_like(old, device=new.device) if old.is_meta else old.to(new.device))


def weight_of(linear, name):
    """The weight of a linear layer as (outputs, inputs); TypeError naming the layer if it is of another kind."""
    if isinstance(linear, torch.nn.Linear):
        return linear.weight
    if is_conv1d(linear):
        return linear.weight.T
    raise TypeError(f"{name} is a {type(linear).__name__}; only nn.Linear and transformers' Conv1D can be quantized")


def is_conv1d(layer):
    """Whether a layer is transformers' Conv1D (GPT-2's), told by its name: the core does not import transformers."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers")


def packed_linear(x, packed, scale, zero_point, bits, group_size, bias=None):
    """A linear layer on packed weights: unpack them, turn them into real numbers, multiply.

    It is QLinear's plain formula for a weight in groups; nothing that was unpacked is there any more when it returns.

    Args:
        x: (..., inputs), of a floating dtype.
        packed: uint8, (outputs, ceil(inputs * bits / 8)): codes that count from the smallest integer, low bits first.
        scale: float32, (outputs, groups).
        zero_point: integers of the shape of `scale`.
        bits: width of a weight, 2 to 8.
        group_size: inputs that share a scale; the last group of a row may be shorter.
        bias: (outputs,) in the dtype of x, or None.

    Returns:
        (..., outputs), in the dtype of x.
    """
    qmin, _ = quant_range(bits)
    values = unpack(packed, bits, x.shape[-1]).to(torch.int16) + qmin
    scale, zero_point = (expand_groups(part, values, group_size) for part in (scale, zero_point))
    weight = dequantize(values, scale, zero_point).to(x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


# ---------------------------------------------------------------- the arithmetic of W8A8


def linear_w8a32(x, values, scale, zero_point, bias=None):
    """A linear layer whose weight is kept in int8 and turned back into float32 before it multiplies.

    Args:
        x: float32, (..., inputs).
        values: int8, (outputs, inputs).
        scale, zero_point: of the weight, as for `dequantize`.
        bias: float32, (outputs,), or None.

    Returns:
        float32, (..., outputs).
    """
    return torch.nn.functional.linear(x, dequantize(values, scale, zero_point), bias)


def integer_linear(x, x_zero_point, w, w_zero_point):
    """The sums of (x - x_zero_point) * (w - w_zero_point) over the inputs, with int8 factors and an int32 accumulator.

    The product of the differences is multiplied out, so that only the integers as they are stored meet in the matrix
    product; three corrections, each far smaller than it, take the zero points off.

    Args:
        x: int8, (..., inputs).
        x_zero_point: a whole number, or an int32 tensor that broadcasts against (..., outputs).
        w: int8, (outputs, inputs).
        w_zero_point: a whole number, or an int32 tensor of shape (outputs,).

    Returns:
        int32, (..., outputs). Exact for up to 33,025 inputs, more than any layer of the course has: each product
        of differences is at most 255 * 255.
    """
    x, w = x.to(torch.int32), w.to(torch.int32)
    x_sums = x.sum(-1, keepdim=True, dtype=torch.int32)
    w_sums = w.sum(-1, dtype=torch.int32)
    inputs = x.shape[-1]
    return x @ w.T - x_zero_point * w_sums - w_zero_point * x_sums + inputs * x_zero_point * w_zero_point


def requantize(accumulator, x_scale, w_scale, y_scale, y_zero_point, bits=8):
    """Turn the int32 sums of one layer into the small integers that the next layer takes.

    Args:
        accumulator: int32, (..., outputs), in units of x_scale * w_scale.
        x_scale: float32, of the layer's input.
        w_scale: float32, of the layer's weight: a number, or one for each output, (outputs,).
        y_scale, y_zero_point: of the result.
        bits: width of the result.

    Returns:
        int8, the shape of `accumulator`; what lies outside the range takes the nearest end of it.
    """
    qmin, qmax = quant_range(bits)
    multiplier = x_scale * w_scale / y_scale
    return torch.round(accumulator * multiplier + y_zero_point).clamp(qmin, qmax).to(torch.int8)


# ---------------------------------------------------------------- layers


class IntegerLinear(torch.nn.Module):
    """A linear layer that multiplies integers with integers; W8A8 when both have 8 bits.

    Weight and input are int8, their products are summed in int32, and the sums are scaled to float32 at the end, so
    that the layer can stand among others. The input's scale and zero point are either found anew for each item of the
    batch (dynamic), or fixed beforehand (static).

    Args:
        weight: float32, (outputs, inputs).
        bias: float32, (outputs,), or None. It is added in float32.
        scheme: a Scheme per tensor or per row, for the weight.
        x_range: None for dynamic; for static the (low, high) of the inputs, as an observer has seen it.
        x_bits: width of the input's integers, 2 to 8; they are asymmetric.

    Raises:
        ValueError: the scheme has a scale per column or group. Such a scale differs from one summand to the next, so
            it cannot wait outside the integer sum.
    """

    def __init__(self, weight, bias=None, scheme=INT8, x_range=None, x_bits=8):
        super().__init__()
        if scheme.axis == 1 or scheme.group_size is not None:
            raise ValueError(
                f"an integer sum needs one scale for all the inputs of a row, not one {scheme.granularity}"
            )
        qtensor = quantize_tensor(weight, scheme, "weight")
        self.x_bits = x_bits
        self.register_buffer("values", qtensor.values)
        self.register_buffer("scale", qtensor.scale.flatten())
        self.register_buffer("zero_point", qtensor.zero_point.flatten())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        x_scale, x_zero_point = (None, None)
        if x_range is not None:
            x_scale, x_zero_point = asymmetric_qparams(*(end.float() for end in x_range), x_bits)
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("x_zero_point", x_zero_point)

    def forward(self, x):
        """(..., inputs) -> (..., outputs), float32 both."""
        x_scale, x_zero_point = self.input_qparams(x)
        q = quantize(x, x_scale, x_zero_point, self.x_bits)
        sums = integer_linear(q, x_zero_point.to(torch.int32), self.values, self.zero_point.to(torch.int32))
        y = sums * (x_scale * self.scale)
        return y if self.bias is None else y + self.bias

    def input_qparams(self, x):
        """The scale and zero point of the input: the calibrated ones, or those of each item of the batch."""
        if self.x_scale is not None:
            return self.x_scale, self.x_zero_point
        low, high = channel_range(x, 0)
        return asymmetric_qparams(low, high, self.x_bits)

    def extra_repr(self):
        outputs, inputs = self.values.shape
        return f"{inputs} -> {outputs}, {'dynamic' if self.x_scale is None else 'static'}"


class IntegerConv2d(torch.nn.Module):
    """A convolution that multiplies integers: every patch of the picture is a row for an IntegerLinear.

    Args:
        conv: a torch.nn.Conv2d with one group and zeros around the picture.
        scheme, x_range, x_bits: as for IntegerLinear.

    Raises:
        ValueError: the convolution has groups, or another padding.
    """

    def __init__(self, conv, scheme=INT8, x_range=None, x_bits=8):
        super().__init__()
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"only a convolution with one group and a padding in numbers can be unfolded, not {conv}")
        self.window = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        self.matrix = IntegerLinear(conv.weight.detach().flatten(1), conv.bias, scheme, x_range, x_bits)

    def forward(self, pictures):
        """(n, channels, height, width) -> (n, outputs, new height, new width), float32 both."""
        # The zeros of the padding are quantized with the rest, so they become the zero point, as they must.
        patches = torch.nn.functional.unfold(pictures, **self.window).transpose(1, 2)
        columns = self.matrix(patches).transpose(1, 2)
        return columns.unflatten(2, self.places(pictures.shape[-2:]))

    def places(self, size):
        """How many places the window takes along the height and the width of a picture."""
        w = self.window
        return [
            (size[i] + 2 * w["padding"][i] - w["dilation"][i] * (w["kernel_size"][i] - 1) - 1) // w["stride"][i] + 1
            for i in (0, 1)
        ]


def integer_layer(layer, scheme=INT8, x_range=None, x_bits=8):
    """The IntegerLinear or IntegerConv2d in the place of a torch.nn.Linear or Conv2d; TypeError for any other layer."""
    if isinstance(layer, torch.nn.Linear):
        return IntegerLinear(layer.weight, layer.bias, scheme, x_range, x_bits)
    if isinstance(layer, torch.nn.Conv2d):
        return IntegerConv2d(layer, scheme, x_range, x_bits)
    raise TypeError(f"there is no integer layer for a {type(layer).__name__}")
