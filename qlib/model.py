"""Whole models: putting quantized layers in the place of float ones, and folding batch norms away."""

import copy
import fnmatch
import functools
from collections import Counter

import torch

from qlib.console import progress_bar
from qlib.linear import QLinear, integer_layer, is_conv1d, weight_of
from qlib.report import Report, SkippedLayer, quantized_layer, sqnr, state_dict_bytes
from qlib.scheme import INT8
from qlib.tensor import check_quantizable

# ---------------------------------------------------------------- quantized layers in a model


def quantize_model(model, scheme, ignore=("lm_head",), progress=True, quantize_layer=QLinear.from_linear):
    """Quantize the weights of a model's linear layers, in place.

    Layers are replaced one at a time, so that beside the model there is never more than one layer's weight. All are
    looked at before the first is touched: a weight that cannot be quantized leaves the model as it was.

    A layer whose weight another module holds too, such as a head that is tied to the embedding, is left: replacing it
    would cut the tie. A layer that stands in several places is quantized once, and stays one.

    Args:
        model: a torch.nn.Module; its nn.Linear and Conv1D layers become QLinear.
        scheme: a Scheme for all of them.
        ignore: which layers to leave, each a name ("lm_head" is also "model.lm_head"), a glob ("*.attn.*") or a
            predicate, called with the name and the layer.
        progress: whether to draw a progress bar where it takes more than two seconds.
        quantize_layer: what makes a QLinear of (layer, scheme, name); by default it rounds. See qlib.methods.

    Returns:
        a Report.

    Raises:
        TypeError, ValueError: a weight is not floating-point or not finite; the message names the layer.
    """
    bytes_before = state_dict_bytes(tensors_of(model))
    chosen, skipped = choose_layers(model, ignore)
    places = places_of(model)
    for name in chosen:
        layer = model.get_submodule(name)
        check_quantizable(weight_of(layer, name), scheme, f"{name}.weight")
    quantized = []
    for name in progress_bar(chosen, "quantizing") if progress else chosen:
        layer = model.get_submodule(name)
        replacement = quantize_layer(layer, scheme, name)
        ratio = sqnr(weight_of(layer, name).detach(), replacement.qtensor.dequantize())
        quantized.append(quantized_layer(name, layer.weight.nbytes, replacement.qtensor, ratio))
        for place in places[name]:
            set_submodule(model, place, replacement)
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
    replace_layers(model, dict.fromkeys(chosen, functools.partial(empty_layer, QLinear, scheme)))
    return chosen


def replace_layers(model, empties):
    """Put an empty layer in the place of each float one in {name: what makes it, of (layer, name)}, in place."""
    places = places_of(model)
    for name, empty in empties.items():
        layer = model.get_submodule(name)
        replacement = empty(layer, name).train(layer.training)
        for place in places.get(name, [name]):  # not there: it stands inside a layer that has just been put in
            set_submodule(model, place, replacement)


def empty_layer(layer_class, scheme, linear, name):
    """An empty QLinear, or a layer that is made like one, with the sizes, the bias and the device of a linear layer."""
    outputs, inputs = weight_of(linear, name).shape
    return layer_class(inputs, outputs, scheme, linear.bias is not None, linear.weight.device)


def layers_to_quantize(model, ignore):
    """The names of the linear layers of a model that can be quantized each on its own.

    Left out are those that `ignore` speaks of, the model itself, and a layer whose weight another module holds too: a
    head that is tied to the embedding. A layer that stands in several places is named once, for the first of them.

    Args:
        model, ignore: as for `quantize_model`.

    Returns:
        list of names, in the order of `named_modules`.
    """
    modules = list(model.named_modules())  # a module that stands in several places comes once
    holders = Counter(id(weight) for _, module in modules for weight in module.parameters(recurse=False))
    return [
        name
        for name, layer in modules
        if name and is_linear(layer) and not is_ignored(name, layer, ignore) and holders[id(layer.weight)] == 1
    ]


def choose_layers(model, ignore):
    """The names of the linear layers to quantize, and a SkippedLayer for each other module that holds a matrix."""
    chosen, skipped = layers_to_quantize(model, ignore), []
    holders = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(f"{name}.{key}")
    done = set(chosen)
    for name, module in model.named_modules():
        nbytes = sum(parameter.nbytes for parameter in module.parameters(recurse=False) if parameter.ndim > 1)
        if nbytes and name not in done:
            skipped.append(SkippedLayer(name, why_left(name, module, holders), nbytes))
    return chosen, skipped


def why_left(name, module, holders):
    """Why `layers_to_quantize` left a module out; `holders` is {id of a parameter: its names in all modules}."""
    if not is_linear(module):
        return f"not a linear layer: {type(module).__name__}"
    if not name:
        return "the model itself: use QLinear.from_linear"
    if id(module.weight) not in holders:
        return "its weight is made of others"
    tied = [other for other in holders[id(module.weight)] if other != f"{name}.weight"]
    return f"tied to {tied[0].lstrip('.')}" if tied else "ignored"


def is_linear(layer):
    """Whether a QLinear can do a layer's work: nn.Linear, and transformers' Conv1D.

    The output layer of PyTorch's MultiheadAttention is a Linear whose weight is read from outside, so it must keep it.
    """
    read_from_outside = isinstance(layer, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    return (isinstance(layer, torch.nn.Linear) and not read_from_outside) or is_conv1d(layer)


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


def places_of(model):
    """{name: all names of the same module}: a module may stand in several places of the tree, and must stay one."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {name: same for same in names.values() for name in same}


def tensors_of(model):
    """{name: tensor} of all parameters and buffers, those that a state dict leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def still_on_meta(model):
    """The names of a model's parameters and buffers that are on the meta device, where a tensor has no values.

    Buffers that a state dict leaves out count too; what has several names is named once.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in tensors if tensor.is_meta]


# ---------------------------------------------------------------- which layers mind


def sensitivity(model, names, scheme, measure):
    """How good a model is with one of its layers quantized and all others as they are, for each layer in turn.

    The layers change places in the model itself, so that beside it there is never more than one layer; each is put
    back before the next is tried, even where `measure` raises or is interrupted.

    Args:
        model: a torch.nn.Module.
        names: of linear layers of it, as `layers_to_quantize` gives them.
        scheme: a Scheme for the layer that is tried.
        measure: measure(model) gives a number, such as a perplexity.

    Returns:
        {name: number}, in the order of `names`.
    """
    places, values = places_of(model), {}
    for name in names:
        layer = model.get_submodule(name)
        quantized = QLinear.from_linear(layer, scheme, name)
        try:
            for place in places[name]:
                set_submodule(model, place, quantized)
            values[name] = measure(model)
        finally:
            for place in places[name]:
                set_submodule(model, place, layer)
    return values


def layers_to_leave(damage, price, budget):
    """Which layers to leave at more bits when that may cost `budget` bytes in all: the most damage avoided per byte.

    Greedy: from the layer with the most damage per byte to the one with the least, each is taken if its price still
    fits into what is left of the budget, and passed over if not. Of two alike the first one comes first.

    Args:
        damage: {name: how much worse the model is when the layer has few bits}. Layers that do none are not taken.
        price: {name: bytes that more bits for the layer cost}, above 0.
        budget: bytes.

    Returns:
        list of names, in the order in which they were taken.
    """
    taken = []
    for name in sorted(damage, key=lambda name: damage[name] / price[name], reverse=True):
        if damage[name] > 0 and price[name] <= budget:
            taken.append(name)
            budget -= price[name]
    return taken


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
