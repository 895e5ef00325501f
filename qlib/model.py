"""Whole models: putting quantized layers in the place of float ones, and saying what was left and why."""

import collections.abc
import fnmatch
import functools
import importlib
import re
import sys
import warnings
from collections import Counter

import torch

from qlib.console import progress_bar
from qlib.experts import PackedParameter, as_matrix, expert_parameters, is_experts, large_parameters, put_parameter
from qlib.linear import (
    PackedLayer,
    QEmbedding,
    QLinear,
    hand_over_hooks,
    is_conv1d,
    is_float,
    more_than_linear,
    weight_of,
)
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
        ignore: which layers to leave; None for none, or one or several of: a name ("lm_head" is also "model.lm_head"),
            a glob ("*.attn.*"), a compiled regular expression that is found in the name, a module, with all in it, or
            a predicate, called with the name and the layer. What matches nothing is said in a warning.
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
        TypeError, ValueError: a weight is not finite, or on the meta device; the message names the layer. Or `ignore`
            holds something else.
    """
    ignore = ignore_rules(ignore)
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
    if isinstance(new[name], PackedParameter):
        weight = as_matrix(weight, qtensor.shape[0], new[name].transposed)
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
    replace(model, {name: empty_layer(model.get_submodule(name), name, scheme) for name in chosen})
    return chosen


def empty_layer(linear, name, scheme):
    """An empty QLinear with the sizes, the bias and the device of a linear layer."""
    return QLinear.empty(linear, name, **scheme.settings()).train(linear.training)


def replace(model, layers):
    """Put layers in the place of others, {name: layer}, in place: wherever in the tree the same module stands.

    They call the hooks of those others, but for one that has the other inside. A PackedParameter takes the place of the
    parameter of this name.
    """
    places = places_of(model)
    for name, layer in layers.items():
        if isinstance(layer, PackedParameter):
            owner, _, parameter = name.rpartition(".")
            put_parameter(model.get_submodule(owner), parameter, layer)
            continue
        old = model.get_submodule(name)
        if old not in layer.modules():
            hand_over_hooks(old, layer)
        for place in places[name]:
            set_submodule(model, place, layer)
    forget_ties(model)


def forget_ties(model):
    """Have a model of transformers tie no more what is no Parameter now: quantized layers share packed weights."""
    for module in model.modules():
        ties = vars(module).get("all_tied_weights_keys") or {}  # to ask the module for what it lacks takes long
        kept = {target: source for target, source in ties.items() if has_parameters(module, target, source)}
        if kept != ties:
            module.all_tied_weights_keys = module._tied_weights_keys = kept


def has_parameters(model, *names):
    """Whether a model has a parameter of each of these names. None is asked for: a quantized weight would be made."""
    places = (name.rpartition(".") for name in names)
    return all(leaf in model.get_submodule(owner)._parameters for owner, _, leaf in places)


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
            dtype = layer.weight.dtype
            layers[name] = QLinear.from_qtensor(qtensor, layer.bias, activation_bits, dtype).train(layer.training)
    return layers


def is_embedding(layer):
    """Whether a QEmbedding can do a layer's work: an nn.Embedding that looks rows up and does nothing else."""
    plain = isinstance(layer, torch.nn.Embedding) and type(layer).forward is torch.nn.Embedding.forward
    return plain and layer.max_norm is None


def matrix_of(model, name):
    """The weight of an embedding, of a linear layer as (outputs, inputs), or the parameter of a name."""
    layer = member_of(model, name)
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

    `others` are names of layers and parameters that are quantized in another way. Adapters are left, for it is they
    that are trained.
    """
    rules, adapters = ignore_rules(ignore), adapters_in(model)
    warn_of_rules_for_nothing(model, rules)
    chosen, skipped = layers_to_quantize(model, (*rules, *adapters)), []
    adapters = {part for adapter in adapters for part in adapter.modules()}
    holders = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(f"{name}.{key}")
    done = {*chosen, *others}
    for name, module in model.named_modules():
        matrices = [w for key, w in matrices_in(module).items() if f"{name}.{key}" not in done]
        nbytes = sum(weight.nbytes for weight in matrices)
        if nbytes and name not in done:
            why = "an adapter" if module in adapters else why_left(name, module, holders)
            skipped.append(SkippedLayer(name, why, nbytes))
    return chosen, skipped


def matrices_in(module):
    """{name: tensor} of what a module itself holds in two dimensions or more, buffers that are saved with it too."""
    if isinstance(module, PackedLayer):
        return {}
    unsaved = module._non_persistent_buffers_set
    buffers = {key: b for key, b in module.named_buffers(recurse=False) if b.is_floating_point() and key not in unsaved}
    tensors = dict(module.named_parameters(recurse=False)) | buffers
    return {key: tensor for key, tensor in tensors.items() if tensor.ndim > 1}


def why_left(name, module, holders):
    """Why `layers_to_quantize` left a module out; `holders` is {id of a parameter: its names in all modules}."""
    kind = f"not a linear layer: {type(module).__name__}"
    if is_experts(module):
        return f"{kind}, experts whose weights are ignored, or left by a method that is for linear layers"
    if not may_be_linear(module):
        return kind
    if not name:
        return "the model itself: use QLinear.from_linear"
    if id(module.weight) not in holders:
        return "its weight is made of others"
    more = more_than_linear(module)
    if more:
        return more
    tied = [other for other in holders[id(module.weight)] if other != f"{name}.weight"]
    return f"tied to {tied[0].lstrip('.')}" if tied else "ignored"


def is_linear(layer):
    """Whether a QLinear can do a layer's work: a float nn.Linear that does no more, or transformers' Conv1D."""
    return may_be_linear(layer) and more_than_linear(layer) is None


def may_be_linear(layer):
    """Whether a layer is a float nn.Linear or transformers' Conv1D, whatever it does besides.

    The output layer of PyTorch's MultiheadAttention is a Linear whose weight is read from outside, so it must keep it.
    """
    read_from_outside = isinstance(layer, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    return (is_float(layer, torch.nn.Linear) and not read_from_outside) or is_conv1d(layer)


def adapters_in(model):
    """The modules in which peft keeps what it trains beside the layers of a model."""
    parts = [getattr(m, name, None) for m in model.modules() for name in getattr(m, "adapter_layer_names", ())]
    return [part for part in parts if isinstance(part, torch.nn.Module)]


# ---------------------------------------------------------------- which layers to leave


def is_ignored(name, layer, ignore):
    """Whether a rule among `ignore` speaks of a layer."""
    return any(speaks_of(rule, name, layer) for rule in ignore_rules(ignore))


def ignore_rules(ignore):
    """What `quantize_model` takes as `ignore`, as a tuple of rules; TypeError naming what is none."""
    several = isinstance(ignore, collections.abc.Iterable) and not isinstance(ignore, (str, torch.nn.Module))
    rules = () if ignore is None else tuple(ignore) if several else (ignore,)
    for rule in rules:
        if not isinstance(rule, (str, re.Pattern)) and not callable(rule):  # as modules are
            raise TypeError(
                f"ignore must be None or names, globs, compiled regular expressions, modules or functions, not {rule!r}"
            )
    return rules


def speaks_of(rule, name, layer):
    """Whether one rule speaks of a layer."""
    if isinstance(rule, torch.nn.Module):
        return any(part is layer for part in rule.modules())
    if isinstance(rule, re.Pattern):
        return rule.search(name) is not None
    if callable(rule):
        return rule(name, layer)
    return fnmatch.fnmatchcase(name, rule) or fnmatch.fnmatchcase(name, f"*.{rule}")


def warn_of_rules_for_nothing(model, rules):
    """Say of each name, glob or expression that it speaks of no module of the model that holds tensors."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module._parameters]
    names += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for rule in rules:
        words = isinstance(rule, (str, re.Pattern)) and rule != "lm_head"  # which is there by default
        if words and not any(speaks_of(rule, name, None) for name in names):
            text = rule if isinstance(rule, str) else rule.pattern
            warnings.warn(f"{text!r} in ignore matches no layer of this {type(model).__name__}", stacklevel=4)


def member_of(model, name):
    """The module, the parameter or the buffer of a dotted name."""
    owner, _, key = name.rpartition(".")
    return getattr(model.get_submodule(owner), key)


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
