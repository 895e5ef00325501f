"""What transformers knows of a checkpoint: the model that config.json describes, and how tensors become that model's.

transformers saves some models under other names than its classes use, older checkpoints lack a prefix or call a weight
gamma, and some tensors are put together from several (the experts of a mixture) or taken apart (one for q, k and v).
"""

import contextlib
import copy
import itertools
import re
from typing import NamedTuple

import torch

from qlib.folders import CONFIG, GENERATION

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


# ---------------------------------------------------------------- the model


def empty_model(folder, config, generation, headers):
    """The float model that config.json describes: parameters on the meta device, buffers real, ties tied.

    No code but that of transformers is run, whatever config.json asks for, and nothing is asked on the terminal.

    Args:
        folder: what error messages name.
        config, generation: what config.json holds, and generation_config.json or None.
        headers: of the weights, {WeightFile: header}: a model of far more parameters is not built.

    Raises:
        ValueError: transformers has no such model, or cannot build it.
    """
    import accelerate
    import transformers

    origin = folder / CONFIG
    model_class, config_class = classes_of(config, origin)
    most = 1000 + 4 * sum(len(header["tensors"]) for header in headers.values())
    try:
        check_counts(config, most)
        settings = config_class.from_dict(with_floats(config), name_or_path=str(folder))
        # Buffers that are in no file, such as the frequencies of a rotary embedding, are calculated here, and are real.
        with accelerate.init_empty_weights(include_buffers=False), at_most_parameters(most):
            model = model_class(settings)
        model.tie_weights()
    except Exception as error:  # whatever it is, it is what config.json says that raises it
        raise ValueError(f"{origin} describes no {model_class.__name__} that can be built: {said(error)}") from error
    if generation is not None and model.can_generate():
        try:
            model.generation_config = transformers.GenerationConfig.from_dict(generation)
        except Exception as error:
            raise ValueError(f"{folder / GENERATION} makes no sense: {said(error)}") from error
    return model


def with_floats(content):
    """A copy of what a JSON file of transformers holds, with the floats that JSON has no numbers for."""
    if isinstance(content, dict):
        if content.keys() == {"__float__"}:
            return float(content["__float__"])
        return {key: with_floats(value) for key, value in content.items()}
    return [with_floats(value) for value in content] if isinstance(content, list) else content


def said(error):
    """An error of others, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def classes_of(config, origin):
    """(class of the model, class of its configuration) that config.json names, both of transformers.

    Raises:
        ValueError: it names none, or one that transformers lacks, maybe with code of its own.
    """
    import transformers

    architectures, model_type = config.get("architectures"), config.get("model_type")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    model_class = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    is_class = isinstance(model_class, type) and model_class is not transformers.PreTrainedModel
    if not architecture:
        what = "no architecture"
    elif not is_class or not issubclass(model_class, transformers.PreTrainedModel):
        what = f"the architecture {architecture!r}, which transformers lacks"
    elif not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        what = f"the model type {model_type!r}, which transformers lacks"
    else:
        return model_class, transformers.CONFIG_MAPPING[model_type]
    give = "give load_quantized the model too"
    if "auto_map" in config:  # code that came with the checkpoint: never run here, nor asked about on the terminal
        give = f"{give}, which AutoModel.from_config builds with trust_remote_code=True if you trust its code"
    raise ValueError(f"{origin} names {what}: {give}")


COUNTS = ("layer", "layers", "blocks", "depth", "depths", "experts")  # how numbers of modules are called


def check_counts(config, most):
    """Raise one clear error where a configuration asks for more than `most` layers: to build them would never end."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_counts(value, most)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > most and key.endswith(COUNTS):
                raise ValueError(f"{key} is {number}, more than the checkpoint has tensors")


@contextlib.contextmanager
def at_most_parameters(most):
    """`with at_most_parameters(most):` modules that get more parameters than that raise ValueError."""
    count = itertools.count(1)

    def check(module, name, parameter):
        if next(count) > most:
            raise ValueError("it has far more parameters than the checkpoint has tensors")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def is_made_anew(model, name):
    """Whether a model of transformers makes a tensor by itself where no file holds it, such as a table of sinusoids."""
    patterns = [getattr(model, f"_keys_to_ignore_on_{when}", None) or () for when in ("load_missing", "save")]
    return any(re.search(pattern, name) for pattern in itertools.chain(*patterns))
