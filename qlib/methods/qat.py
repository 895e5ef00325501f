"""QAT: train a net with its weights rounded, so that it learns to live with the rounding.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv:1712.05877), section 3, for the weights; the straight-through estimator is that of Bengio et al. 2013
(arXiv:1308.3432), section 4.
"""

import torch
from torch.nn.utils import parametrize

from qlib.affine import choose_qparams, dequantize, expand_groups, quant_range, quantize
from qlib.linear import is_float
from qlib.methods.static import fuse_batch_norms
from qlib.tensor import quantize_tensor


class StraightThrough(torch.autograd.Function):
    """Quantize and dequantize; backwards, as if nothing had been rounded.

    The derivative of rounding is 0 nearly everywhere, and a net that is trained with it would never move. So the
    gradient goes straight through: see `straight_through`.
    """

    @staticmethod
    def forward(context, weight, scale, zero_point, bits):
        context.save_for_backward(weight, scale, zero_point)
        context.bits = bits
        return dequantize(quantize(weight, scale, zero_point, bits), scale, zero_point).to(weight.dtype)

    @staticmethod
    def backward(context, gradient):
        return straight_through(gradient, *context.saved_tensors, context.bits), None, None, None


def straight_through(gradient, weight, scale, zero_point, bits):
    """The gradient of a weight, given that of what came back of it: the same, but 0 where the weight is clipped.

    A weight whose integer would lie outside the range is clipped to its end, and moving it a little changes nothing.

    Args:
        gradient, weight: of one shape and floating dtype.
        scale, zero_point: broadcast against them.
        bits: width of the integers.

    Returns:
        a tensor like `gradient`.
    """
    qmin, qmax = quant_range(bits)
    integers = torch.round(weight.float() / scale + zero_point)
    return gradient * ((integers >= qmin) & (integers <= qmax))


class FakeQuantize(torch.nn.Module):
    """Gives a weight as it will be after a trip through the integers of a Scheme, with a gradient to train it by.

    The scale and zero point follow the weight: they are found anew at each call, and have no gradient themselves.
    """

    def __init__(self, scheme):
        super().__init__()
        self.scheme = scheme

    def forward(self, weight):
        qparams = choose_qparams(weight.detach(), self.scheme)
        scale, zero_point = (expand_groups(qparam, weight, self.scheme.group_size) for qparam in qparams)
        return StraightThrough.apply(weight, scale, zero_point, self.scheme.bits)


def prepare_qat(net, scheme):
    """A copy of a net that is ready to be trained with rounded weights.

    Batch norms are folded first, for it is the folded weight that will be quantized (section 3.2, but with the averages
    that the float training left, and not those of each batch). Every Linear and Conv2d then keeps a float weight for
    the optimizer, and computes with the rounded one.

    Args:
        net: a torch.nn.Sequential in evaluation mode, trained in floats already.
        scheme: a Scheme, of the weights; activations and biases stay float. (The paper rounds activations too.)

    Returns:
        a new torch.nn.Sequential in training mode.

    Raises:
        TypeError, ValueError: it is no Sequential, or not in evaluation mode.
    """
    if not isinstance(net, torch.nn.Sequential):
        raise TypeError(f"prepare_qat takes a torch.nn.Sequential, not a {type(net).__name__}")
    if scheme.grid != "integer" or scheme.scales != "float32":
        raise ValueError(f"prepare_qat trains for integers with float32 scales, not for {scheme}")
    net = fuse_batch_norms(net).requires_grad_(True)
    for layer in list(net.modules()):
        if is_float(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            parametrize.register_parametrization(layer, "weight", FakeQuantize(scheme))
    return net.train()


def convert_qat(net):
    """What a net from `prepare_qat` has learnt, with its weights as integers: for `qlib.save_tensors`.

    Returns:
        {name: QTensor of a weight, or any other tensor}, such as "conv1.weight" and "conv1.bias", named as in the net
        that was prepared, its batch norms folded.
    """
    schemes = {
        f"{name}.weight": layer.parametrizations.weight[0].scheme
        for name, layer in net.named_modules()
        if parametrize.is_parametrized(layer, "weight")
    }
    floats = {name.replace("parametrizations.weight.original", "weight"): t for name, t in net.state_dict().items()}
    return {name: quantize_tensor(t, schemes[name], name) if name in schemes else t for name, t in floats.items()}
