"""Whole models: putting quantized layers in the place of float ones, and saying what was left and why."""

import fnmatch
import functools
import importlib
import sys
from collections import Counter

import torch

from qlib.console import progress_bar
from qlib.experts import PackedParameter, as_matrix, expert_parameters, is_experts, large_parameters, put_parameter
from qlib.linear import QEmbedding, QLinear, is_conv1d, weight_of
from qlib.report import QuantizedLayer, Report, SkippedLayer, sqnr, state_dict_bytes
from qlib.tensor import check_quantizable, quantize_tensor

# ---------------------------------------------------------------- quantized layers in a model


def quantize_model(
    model,
    scheme,
    ignore=("lm_head",),
    progress=True,
    activation_bits=None,
    embeddings=False,
    other_weights=False,
    quantize_layer=None,
):
    """Quantize the weights of a model's linear layers, and of the experts of a mixture, in place.

    Layers are replaced one at a time, so that beside the model there is never more than one layer's weight. All are
    looked at before the first is touched: a weight that cannot be quantized leaves the model as it was.

    A layer whose weight another module holds too, such as a head that is tied to the embedding, is left: replacing it
    would cut the tie. With `embeddings` both are quantized, and share the packed weight. A layer that stands in several
    places is quantized once, and stays one. transformers keeps the experts of a layer in one tensor for all: it becomes
    a PackedParameter, and its inputs stay float.

    Args:
        model: a torch.nn.Module; its nn.Linear and Conv1D layers become QLinear.
        scheme: a Scheme for all of them.
        ignore: which layers to leave, each a name ("lm_head" is also "model.lm_head"), a glob ("*.attn.*") or a
            predicate, called with the name and the layer.
        progress: whether to draw a progress bar where it takes more than two seconds.
        activation_bits: None for float activations, 8 for int8 ones: see QLinear.
        embeddings: whether the nn.Embedding layers become QEmbedding, too.
        other_weights: whether every other large weight is packed as well, a last resort: of a convolution, say, or of
            attention with code of its own. It is made real at each use, so this saves memory and costs time.
        quantize_layer: what makes a QLinear of (layer, scheme, name); by default it rounds. See qlib.methods. Experts
            are left then.

    Returns:
        a Report.

    Raises:
        TypeError, ValueError: a weight is not floating-point or not finite; the message names the layer.
    """
    bytes_before = state_dict_bytes(tensors_of(model))
    tables = embeddings_to_quantize(model, ignore) if embeddings else {}
    packs = {} if quantize_layer else parameters_to_pack(model, ignore, other_weights)
    done = {name for group in tables.values() for name in group}
    chosen, skipped = choose_layers(model, ignore, done | packs.keys())
    quantize_layer = quantize_layer or functools.partial(rounded_layer, activation_bits=activation_bits)
    names = [*chosen, *tables, *packs]
    for name in names:
        check_quantizable(matrix_of(model, name), scheme, name if name in packs else f"{name}.weight")
    quantized = []
    for name in progress_bar(names, "quantizing") if progress else names:
        weight = matrix_of(model, name).detach()
        if name in packs:
            new = {name: PackedParameter.from_parameter(weight, scheme, **packs[name], name=name)}
            weight = as_matrix(weight, **packs[name])
        elif name in tables:
            new = quantized_tables(model, tables[name], scheme, activation_bits)
        else:
            new = {name: quantize_layer(model.get_submodule(name), scheme, name)}
        quantized += report_lines(name, weight, new)
        replace(model, new)
    tell_transformers(model)
    return Report(quantized, skipped, bytes_before, state_dict_bytes(tensors_of(model)))


def tell_transformers(model):
    """Let models of transformers know that they are quantized, so that their own save_pretrained writes it down."""
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None:
        return
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            importlib.import_module("qlib.hf").attach(module)  # not at the top: the core does without transformers


def rounded_layer(layer, scheme, name, activation_bits=None):
    """The QLinear of a layer, rounded to the nearest."""
    return QLinear.from_linear(layer, scheme, name, activation_bits)


def report_lines(name, weight, new):
    """A QuantizedLayer for each layer of {name: quantized layer}, which share the weight of the one called `name`."""
    qtensor = new[name].qtensor
    cost = weight.nbytes, qtensor.nbytes, qtensor.bits_per_weight, sqnr(weight, qtensor.dequantize())
    return [QuantizedLayer(each, qtensor.scheme, *cost, None if each == name else name) for each in new]


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
        replace(model, {name: empty_layer(model.get_submodule(name), name, scheme)})
    return chosen


def empty_layer(linear, name, scheme):
    """An empty QLinear with the sizes, the bias and the device of a linear layer."""
    outputs, inputs = weight_of(linear, name).shape
    return QLinear(inputs, outputs, scheme, linear.bias is not None, linear.weight.device).train(linear.training)


def replace(model, layers):
    """Put layers in the place of others, {name: layer}, in place: wherever in the tree the same module stands.

    A PackedParameter takes the place of the parameter of this name.
    """
    places = places_of(model)
    for name, layer in layers.items():
        if isinstance(layer, PackedParameter):
            owner, _, parameter = name.rpartition(".")
            put_parameter(model.get_submodule(owner), parameter, layer)
            continue
        for place in places[name]:
            set_submodule(model, place, layer)


# ---------------------------------------------------------------- weights that no linear layer holds


def parameters_to_pack(model, ignore, other_weights=False):
    """{name of a parameter: how it lies as a matrix} of the experts' weights of a model, and of all other large ones.

    Left out are those that `ignore` speaks of, by their own name or their module's, the model's own, and what two
    modules hold.
    """
    holders = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    packs = {}
    for name, module in model.named_modules():
        others = other_weights and not is_linear(module) and not is_embedding(module)
        for key, layout in ((large_parameters(module) if others else {}) | expert_parameters(module)).items():
            full_name = f"{name}.{key}"
            ignored = is_ignored(name, module, ignore) or is_ignored(full_name, module, ignore)
            if name and not ignored and holders[id(getattr(module, key))] == 1:
                packs[full_name] = layout
    return packs


# ---------------------------------------------------------------- embeddings


def embeddings_to_quantize(model, ignore):
    """The tables of a model that can be quantized: {name of an embedding: names of all layers on its weight}.

    Left out are those that `ignore` speaks of, and a table that something else than an embedding or a linear layer
    holds too.
    """
    holders = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), {})[name] = module
    tables = {}
    for name, module in model.named_modules():
        if is_embedding(module) and name and not is_ignored(name, module, ignore):
            group = holders[id(module.weight)]
            first = next(holder for holder, layer in group.items() if is_embedding(layer))
            if name == first and all(is_embedding(m) or is_linear(m) for m in group.values()):
                tables[name] = [name, *(other for other in group if other != name)]
    return tables


def quantized_tables(model, names, scheme, activation_bits):
    """{name: QEmbedding or QLinear} of layers that hold one weight: it is quantized once, and they share its memory."""
    first = model.get_submodule(names[0])
    qtensor = quantize_tensor(first.weight, scheme, f"{names[0]}.weight")
    layers = {}
    for name in names:
        layer = model.get_submodule(name)
        if is_embedding(layer):
            layers[name] = QEmbedding.from_qtensor(qtensor, layer)
        else:
            layers[name] = QLinear.from_qtensor(qtensor, layer.bias, activation_bits).train(layer.training)
    return layers


def is_embedding(layer):
    """Whether a QEmbedding can do a layer's work: an nn.Embedding that looks rows up and does nothing else."""
    plain = isinstance(layer, torch.nn.Embedding) and type(layer).forward is torch.nn.Embedding.forward
    return plain and layer.max_norm is None


def matrix_of(model, name):
    """The weight of an embedding, of a linear layer as (outputs, inputs), or the parameter of a name."""
    owner, _, key = name.rpartition(".")
    layer = getattr(model.get_submodule(owner), key)
    if isinstance(layer, torch.nn.Module):
        return layer.weight if isinstance(layer, torch.nn.Embedding) else weight_of(layer, name)
    return layer


# ---------------------------------------------------------------- which layers


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


def choose_layers(model, ignore, others=()):
    """The names of the linear layers to quantize, and a SkippedLayer for each other module that holds a matrix.

    `others` are names of layers and parameters that are quantized in another way.
    """
    chosen, skipped = layers_to_quantize(model, ignore), []
    holders = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(f"{name}.{key}")
    done = {*chosen, *others}
    for name, module in model.named_modules():
        left = {key: p for key, p in module.named_parameters(recurse=False) if f"{name}.{key}" not in done}
        nbytes = sum(parameter.nbytes for parameter in left.values() if parameter.ndim > 1)
        if nbytes and name not in done:
            skipped.append(SkippedLayer(name, why_left(name, module, holders), nbytes))
    return chosen, skipped


def why_left(name, module, holders):
    """Why `layers_to_quantize` left a module out; `holders` is {id of a parameter: its names in all modules}."""
    if is_experts(module):
        return "experts: left by their name, or by a method that is for linear layers alone"
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
    values = {}
    for name in names:
        layer = model.get_submodule(name)
        quantized = QLinear.from_linear(layer, scheme, name)
        try:
            replace(model, {name: quantized})
            values[name] = measure(model)
        finally:
            replace(model, {name: layer})
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
