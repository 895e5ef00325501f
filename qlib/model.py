"""Whole models: folding batch norms away, and putting integer layers in the place of float ones."""

import copy

import torch

from qlib.linear import integer_layer
from qlib.scheme import INT8


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
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
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
