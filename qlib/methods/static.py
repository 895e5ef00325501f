"""Static quantization: nets of integer layers, whose inputs have ranges that were calibrated beforehand.

The arithmetic is that of Jacob et al. 2018 (arXiv:1712.05877), section 2; folding batch norms is its section 3.2.
"""

import copy

import torch

from qlib.affine import asymmetric_qparams, channel_range, dequantize, quant_range, quantize
from qlib.linear import integer_linear, is_float
from qlib.scheme import INT8
from qlib.tensor import quantize_tensor

# ---------------------------------------------------------------- the arithmetic


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
        if scheme.grid != "integer":
            raise ValueError(f"integers are multiplied here, not the levels of {scheme}")
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
    if is_float(layer, torch.nn.Linear):
        return IntegerLinear(layer.weight, layer.bias, scheme, x_range, x_bits)
    if isinstance(layer, torch.nn.Conv2d):
        return IntegerConv2d(layer, scheme, x_range, x_bits)
    raise TypeError(f"there is no integer layer for a {type(layer).__name__}")


# ---------------------------------------------------------------- nets


def fuse_conv_bn(conv, bn):
    """Fold a batch norm into the convolution before it: one layer that computes what the two do one after the other.

    In evaluation mode a batch norm is a straight line for each channel, gamma * (x - mean) / sqrt(var + eps) + beta.
    A convolution followed by a straight line is a convolution with another weight and another bias.

    Args:
        conv: a torch.nn.Conv2d, with or without a bias.
        bn: the torch.nn.BatchNorm2d after it: weight (gamma), bias (beta), running_mean, running_var, eps.

    Returns:
        a new torch.nn.Conv2d; `conv` and `bn` stay as they are.
    """
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bias = 0 if conv.bias is None else conv.bias
    fused = copy.deepcopy(conv)
    fused.weight = torch.nn.Parameter(conv.weight * factor.reshape(-1, 1, 1, 1))
    fused.bias = torch.nn.Parameter(bn.bias + (bias - bn.running_mean) * factor)
    return fused


def fuse_batch_norms(net):
    """A copy of a Sequential in which each batch norm is folded into the convolution right before it.

    Raises:
        ValueError: the net is in training mode, where a batch norm follows its batch and is no straight line.
    """
    if net.training:
        raise ValueError("a batch norm can only be folded in evaluation mode: call net.eval() first")
    fused, before = {}, None
    for name, layer in net.named_children():
        if isinstance(layer, torch.nn.BatchNorm2d) and isinstance(fused.get(before), torch.nn.Conv2d):
            fused[before] = fuse_conv_bn(fused[before], layer)
        else:
            fused[name], before = copy.deepcopy(layer), name
    return sequential(fused).eval().requires_grad_(False)


def integer_net(net, scheme=INT8, observers=None, x_bits=8):
    """A copy of a Sequential with integer layers in the place of its linear and convolutional ones.

    Args:
        net: a torch.nn.Sequential; what is neither a Linear nor a Conv2d is kept.
        scheme: of the weights, per tensor or per row.
        observers: {name of a layer: observer of its inputs}, as `calibrate` gives it, for static quantization; None
            for dynamic.
        x_bits: width of the layers' inputs.

    Raises:
        ValueError: a layer has no observer; the message names it.
    """
    layers = {}
    for name, layer in net.named_children():
        if is_float(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            layers[name] = integer_layer(layer, scheme, observed_range(observers, name), x_bits)
        else:
            layers[name] = copy.deepcopy(layer)
    return sequential(layers).eval()


def observed_range(observers, name):
    """The range of a layer's inputs, or None where there are no observers at all."""
    if observers is None:
        return None
    if name not in observers:
        raise ValueError(f"layer {name!r} was not calibrated: no input reached it inside `with calibrate(...)`")
    return observers[name].range()


def sequential(layers):
    """A torch.nn.Sequential of {name: layer}."""
    net = torch.nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net
