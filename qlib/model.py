"""Whole models: putting quantized layers in the place of float ones, and folding batch norms away."""

import copy
import fnmatch

import torch

from qlib.linear import QLinear, integer_layer, is_conv1d, weight_of
from qlib.report import Report, SkippedLayer, progress_bar, quantized_layer, sqnr, state_dict_bytes
from qlib.scheme import INT8
from qlib.tensor import check_quantizable

# ---------------------------------------------------------------- quantized layers in a model


def quantize_model(model, scheme, ignore=("lm_head",), progress=True):
    """Quantize the weights of a model's linear layers, in place.

    Layers are replaced one at a time, so that beside the model there is never more than one layer's weight. All are
    looked at before the first is touched: a weight that cannot be quantized leaves the model as it was.

    Args:
        model: a torch.nn.Module; its nn.Linear and Conv1D layers become QLinear.
        scheme: a Scheme for all of them.
        ignore: which layers to leave, each a name ("lm_head" is also "model.lm_head"), a glob ("*.attn.*") or a
            predicate, called with the name and the layer.
        progress: whether to draw a progress bar where it takes more than two seconds.

    Returns:
        a Report.

    Raises:
        TypeError, ValueError: a weight is not floating-point or not finite; the message names the layer.
    """
    bytes_before = state_dict_bytes(tensors_of(model))
    chosen, skipped = choose_layers(model, ignore)
    for name in chosen:
        layer = model.get_submodule(name)
        check_quantizable(weight_of(layer, name), scheme, f"{name}.weight")
    quantized = []
    for name in progress_bar(chosen, "quantizing") if progress else chosen:
        layer = model.get_submodule(name)
        replacement = QLinear.from_linear(layer, scheme, name)
        ratio = sqnr(weight_of(layer, name).detach(), replacement.qtensor.dequantize())
        quantized.append(quantized_layer(name, layer.weight.nbytes, replacement.qtensor, ratio))
        set_submodule(model, name, replacement)
    return Report(quantized, skipped, bytes_before, state_dict_bytes(tensors_of(model)))


def replace_linear(model, scheme, ignore=("lm_head",)):
    """Put empty QLinear layers in the place of a model's linear ones, in place; for `load_state_dict` to fill.

    The structure alone is changed, so a model on the meta device will do.

    Args:
        model, scheme, ignore: as for `quantize_model`.

    Returns:
        the names of the layers that were replaced.
    """
    chosen, _ = choose_layers(model, ignore)
    for name in chosen:
        layer = model.get_submodule(name)
        outputs, inputs = weight_of(layer, name).shape
        set_submodule(model, name, QLinear(inputs, outputs, scheme, layer.bias is not None, layer.weight.device))
    return chosen


def choose_layers(model, ignore):
    """The names of the linear layers to quantize, and a SkippedLayer for each other module that holds a matrix."""
    owners = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    chosen, skipped = [], []
    for name, layer in model.named_modules():
        matrices = [p for p in layer.parameters(recurse=False) if p.ndim > 1]
        if not matrices:
            continue
        tied = [other for other in owners[id(matrices[0])] if other.rpartition(".")[0] != name]
        if not (isinstance(layer, torch.nn.Linear) or is_conv1d(layer)):
            why = f"not a linear layer: {type(layer).__name__}"
        elif is_ignored(name, layer, ignore):
            why = "ignored"
        elif tied:
            why = f"tied to {tied[0]}"
        elif not name:
            why = "the model itself: use QLinear.from_linear"
        else:
            chosen.append(name)
            continue
        skipped.append(SkippedLayer(name, why, sum(p.nbytes for p in matrices)))
    return chosen, skipped


def is_ignored(name, layer, ignore):
    """Whether a name, a glob or a predicate among `ignore` speaks of a layer."""
    return any(
        rule(name, layer)
        if callable(rule)
        else fnmatch.fnmatchcase(name, rule) or fnmatch.fnmatchcase(name, f"*.{rule}")
        for rule in ([ignore] if isinstance(ignore, str) or callable(ignore) else ignore)
    )


def set_submodule(model, name, layer):
    """Put `layer` where `model` has a submodule of this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def tensors_of(model):
    """{name: tensor} of all parameters and buffers, those that a state dict leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


# ---------------------------------------------------------------- batch norms and integer nets


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
