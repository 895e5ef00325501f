"""How the tensors of a checkpoint become those of a model: transformers' own rules, applied tensor by tensor.

transformers saves some models under other names than its classes use, older checkpoints lack a prefix or call a weight
gamma, and some tensors are put together from several (the experts of a mixture) or taken apart (one for q, k and v).
"""

import copy
from typing import NamedTuple

import torch

# Parts of an NF4 weight, as they were called in checkpoints of qlib's first version.
OLD_PARTS = {"absmax": "scale", "absmax_scale": "scale_scale", "absmax_mean": "scale_mean"}


class Conversion(NamedTuple):
    """One or more tensors of a checkpoint that become one or more of the model.

    Args:
        keys: of the checkpoint.
        makes: {name in the model: (dtype, shape)}.
        rule: None where the one tensor is only renamed; else transformers' converter, with the pattern of each key.
        target: the first name, by which the converter makes out the others.
    """

    keys: list
    makes: dict
    rule: tuple | None
    target: str


def conversions_for(model, tensors):
    """The Conversions of a checkpoint's tensors for a model, in the order of the first key of each.

    Args:
        model: its tensors may be on the meta device.
        tensors: {key: (dtype, shape)}.

    Returns:
        (list of Conversion, list of the keys for which the model has no place).
    """
    places, matched, homeless = model.state_dict(), {}, []
    find = finder(model, places)
    for key in sorted(tensors, key=natural_order):
        name, converter, pattern = find(with_current_part(key))
        if name in places:
            matched.setdefault(name, (converter, []))[1].append((pattern, key))
        else:
            homeless.append(key)
    found = []
    for name, (converter, keys) in matched.items():
        if converter is None:
            found.append(renamed(keys[0][1], name, tensors[keys[0][1]]))
            continue
        rule = converter, [pattern for pattern, _ in keys]
        conversion = Conversion([key for _, key in keys], {}, rule, name)
        on_meta = [torch.empty(shape, dtype=dtype, device="meta") for dtype, shape in (tensors[key] for _, key in keys)]
        made = convert(model, conversion, on_meta)
        found.append(conversion._replace(makes={n: (made[n].dtype, tuple(made[n].shape)) for n in made}))
    order = {key: place for place, key in enumerate(tensors)}
    return sorted(found, key=lambda conversion: order[conversion.keys[0]]), homeless


def renamed(key, name, kind):
    """The Conversion of one tensor that has another name in the model, or the same; its `kind` is (dtype, shape)."""
    return Conversion([key], {name: kind}, None, name)


def finder(model, places):
    """A function of a key that gives (name in the model, converter or None, the converter's pattern for the key)."""
    if not hasattr(model, "base_model_prefix"):
        return lambda key: (key, None, None)
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}

    def find(key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, places)
        if name not in places:  # it is the model's own name already, but for the prefix
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, places)
        return name, by_pattern.get(pattern), pattern

    return find


def convert(model, conversion, tensors):
    """{name in the model: tensor} of what a Conversion makes of the tensors of its keys."""
    if conversion.rule is None:
        return {conversion.target: tensors[0]}
    converter, patterns = conversion.rule
    converter = copy.deepcopy(converter)
    for pattern, key, tensor in zip(patterns, conversion.keys, tensors, strict=True):
        converter.add_tensor(conversion.target, key, pattern, tensor)
    made = converter.convert(conversion.target, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def with_current_part(key):
    """The name of a tensor with the name that its part has now: "w.absmax", of NF4 weights, is "w.scale"."""
    layer, dot, part = key.rpartition(".")
    return f"{layer}{dot}{OLD_PARTS.get(part, part)}"


def natural_order(key):
    """Sorts "experts.2" before "experts.10": tensors that are stacked are stacked in this order."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
