"""Quantized models on disk, in a folder laid out as the Hugging Face Hub has it: saved, loaded, and made.

`save_quantized` and `load_quantized` keep a model; `quantize_checkpoint` turns a checkpoint into a quantized one
without ever holding the model. config.json says of each quantized layer what it takes to build it without a file.
"""

import contextlib
import copy
import functools
import itertools
import json
import warnings

import safetensors.torch
import torch

from qlib.console import progress_bar
from qlib.files import (
    CONFIG,
    GENERATION,
    INDEX,
    PICKLES,
    begun_folder,
    copy_companions,
    file_header,
    folder_in_one_piece,
    opened_folder,
    real_path,
    unique_tensors,
    write_json,
    written_file,
)
from qlib.linear import PackedLayer, QEmbedding, QLinear, is_conv1d, weight_of
from qlib.methods.rescale import DividedInput
from qlib.model import choose_layers, empty_layer, places_of, replace, still_on_meta
from qlib.scheme import Scheme
from qlib.tensor import SCALE_PARTS, quantize_tensor

METHOD = "qlib"  # what config.json calls the way a model was quantized

# The layers that quantizing leaves in a model, by what their entries in config.json call their kind.
KINDS = {"qlinear": QLinear, "embedding": QEmbedding, "divided_input": DividedInput}
PLAIN = "qlinear"  # by far the most frequent kind, which an entry need not name
QUANTIZED = tuple(KINDS.values())
# Parts of an NF4 weight, as they were called in checkpoints of qlib's first version.
OLD_PARTS = {"absmax": "scale", "absmax_scale": "scale_scale", "absmax_mean": "scale_mean"}

# ---------------------------------------------------------------- from a layer to its entry, and back


def entries_of(model):
    """{name of a layer: what config.json says of it}, of all quantized layers of a model.

    A layer that shares the packed weight of one before it says so: "shares" is the other's name.
    """
    entries, holders = {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, QUANTIZED):
            kind = next(kind for kind, layer_class in KINDS.items() if isinstance(layer, layer_class))
            entries[name] = ({} if kind == PLAIN else {"kind": kind}) | layer.settings()
            packed = getattr(layer, "packed", None)
            if packed is not None and packed.numel() and holders.setdefault(id(packed), name) != name:
                entries[name]["shares"] = holders[id(packed)]
    return entries


def put_empty_layers(model, entries, origin):
    """Put an empty layer, for a file to fill, in the place of each float one that has an entry, in place.

    Args:
        model: a float model, which may be on the meta device.
        entries: {name of a layer: its entry}; those of qlib's first version will do.
        origin: what error messages call the place where they stand.

    Raises:
        ValueError: an entry is of an unknown kind, makes no sense, or does not fit the model; the message names
            `origin` and the layer.
    """
    makers, name = {}, "layers"
    try:
        for name, entry in entries.items():
            settings = current_entry(entry)
            kind, shares = settings.pop("kind", PLAIN), settings.pop("shares", None)
            if kind not in KINDS:
                raise ValueError(f"its kind is {kind!r}, which this qlib does not know; it knows {', '.join(KINDS)}")
            makers[name] = functools.partial(KINDS[kind].empty, **settings), shares
            makers[name][0](float_layer(kind), name)  # before anything is touched: do the settings make sense?
    except KeyError as missing:
        raise ValueError(f"{origin}: layer {name!r}: its entry lacks {missing}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: layer {name!r}: {error}") from None
    try:
        for name, (empty, _) in makers.items():
            layer = model.get_submodule(name)
            replace(model, {name: empty(layer, name).train(layer.training)})
        for name, (_, shares) in makers.items():
            if shares is not None:
                share_weight(model, name, shares)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{origin} does not fit the model: {error}") from None


def float_layer(kind):
    """A layer such as one of this kind takes the place of, on the meta device."""
    return torch.nn.Embedding(1, 1, device="meta") if kind == "embedding" else torch.nn.Linear(1, 1, device="meta")


def share_weight(model, name, other):
    """Let a quantized layer hold the very tensors that make up the weight of another."""
    model.get_submodule(name).qtensor = model.get_submodule(other).qtensor


def current_entry(entry):
    """An entry as this version writes it."""
    entry = dict(entry)
    if entry.get("kind") == "nf4":
        scales = "double" if entry["double"] else "float32"
        return {"bits": 4, "group_size": entry["block_size"], "grid": "nf4", "scales": scales}
    if entry.get("kind") == "llm_int8":
        del entry["kind"]
        return entry | {"activation_bits": 8, "outlier_threshold": entry.pop("threshold")}
    return entry


# ---------------------------------------------------------------- a model in a folder


def save_quantized(model, folder, tokenizer=None, max_shard_size="5GB"):
    """Write a quantized model as a folder that `load_quantized`, transformers and the Hub understand.

    The folder holds config.json, which says which layers are quantized and how, and the tensors in model.safetensors,
    or in several files and an index when they are larger than `max_shard_size`. All are written under a hidden name and
    become the model in one step: an interrupted save leaves the model that was there whole, a load at any time gives
    the one or the other, and of two saves at once the later stays. Of the folder that was there the weights that its
    model had are removed; nothing else is, such as README.md or the weights of an adapter.

    Args:
        model: a torch.nn.Module with quantized layers, such as `quantize_model` and the methods leave.
        folder: where to; its parent is made if need be. A link to a folder is followed.
        tokenizer: one of transformers, to go with the model, or None.
        max_shard_size: bytes, or a string such as "200MB".

    Raises:
        OSError: the folder cannot be written to.
        ValueError: no layer of the model is quantized, or a tensor has no values (it is on the meta device); or the
            folder is a file, or a link that leads nowhere.
    """
    import huggingface_hub

    config = config_of(model)
    on_meta = still_on_meta(model)
    if on_meta:
        raise ValueError(f"{on_meta[0]} has no values: it is on the meta device")
    stored, ties = unique_tensors(model.state_dict().items())
    shards = huggingface_hub.split_torch_state_dict_into_shards(stored, max_shard_size=max_shard_size)
    with folder_in_one_piece(folder) as new:
        for filename, keys in shards.filename_to_tensors.items():
            metadata = {"format": "pt", "ties": json.dumps(ties)}
            safetensors.torch.save_file({key: stored[key] for key in keys}, new / filename, metadata=metadata)
        if shards.is_sharded:
            write_json(new / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
        for companion in (tokenizer, getattr(model, "generation_config", None)):
            if companion is not None:
                companion.save_pretrained(new)
        write_json(new / CONFIG, config)


def load_quantized(folder, model=None):
    """Load what `save_quantized` or `quantize_checkpoint` wrote, tensor by tensor into a model that has no memory yet.

    The model is built on the meta device, its quantized layers put in, each of its kind, and each tensor is read from
    the file straight to its place: the memory in use peaks near the size of the file. Names, shapes and dtypes are all
    checked before the first tensor is read.

    Args:
        folder: the checkpoint's.
        model: None for a model of transformers, which config.json describes. For any other, a float model of the same
            structure, whose own weights are dropped; it may be on the meta device.

    Returns:
        the model, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a file.
        ValueError: the checkpoint is cut off, foreign or unfit for the model; the message names the file and the key.
    """
    folder = real_path(folder)
    with opened_folder(folder) as (config, generation, files):
        entries = layers_in(config, folder)
        headers = {file: file.header for file in files}
        model = empty_model(folder, config, generation, headers) if model is None else model
        put_empty_layers(model, entries, folder / CONFIG)
        fill(model, headers, folder)
    on_meta = still_on_meta(model)
    if on_meta:
        raise ValueError(
            f"{on_meta[0]} is still on the meta device and in no file; build the model with its buffers on the CPU, "
            "as accelerate.init_empty_weights(include_buffers=False) does"
        )
    return model.eval()


def config_of(model):
    """What config.json says of a quantized model: transformers' configuration, and each quantized layer's entry."""
    layers = entries_of(model)
    if not layers:
        raise ValueError(f"no layer of this {type(model).__name__} is quantized: quantize_model(model, scheme) first")
    config = getattr(model, "config", None)
    described = {}
    if hasattr(config, "to_json_string"):
        described = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
    return described | {"quantization_config": {"quant_method": METHOD, "layers": layers}}


def layers_in(config, folder):
    """{name of a layer: its entry} from what config.json says."""
    path = folder / CONFIG
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        raise ValueError(f"{path} does not say that qlib quantized this model; load it as it is, then quantize_model")
    layers = quantization.get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{path} lacks quantization_config.layers, the schemes of the quantized layers")
    return layers


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
        settings = config_class.from_dict(copy.deepcopy(config), name_or_path=str(folder))
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


def fill(model, headers, folder):
    """Read every tensor of a checkpoint into its place in the model, after all have been checked against it.

    Args:
        model: its tensors may be on the meta device.
        headers: {WeightFile: header}, see `file_header`.
        folder: what error messages call the whole.
    """
    places = model.state_dict(keep_vars=True)
    names = names_in_model(model, [key for header in headers.values() for key in header["tensors"]])
    shared = names_of_tensors(places, headers.values())
    check_tensors(model, headers, names, places)
    filled = {name for key in names for name in shared[id(places[names[key]])]}
    missing = sorted(places.keys() - filled)
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]!r}, which a {type(model).__name__} needs")
    for path, header in headers.items():
        # By hand: the library's reader maps the file into memory, and a model must outlive the file it came from.
        for key in progress_bar(list(header["tensors"]), f"loading {path.name}"):
            put_tensor(model, shared[id(places[names[key]])], path.read(key))


def put_tensor(model, names, tensor):
    """Put a tensor into a model in the place of another, which may be on the meta device: a copy would stay there too.

    Args:
        model: a torch.nn.Module.
        names: all the names of the old tensor, two or more where it is tied; they stay tied.
        tensor: the new one, not copied. It becomes a Parameter, with gradients or without, if the old one is.
    """
    for name in names:
        owner, _, part = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, part)
        if isinstance(old, torch.nn.Parameter) and not isinstance(tensor, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        setattr(module, part, tensor)


def names_of_tensors(places, headers):
    """{identity of a tensor: its names in the model}: one tensor of the file fills all the places of what is tied.

    Args:
        places: the model's state dict, its own tensors.
        headers: of the files; they list ties that the model's class does not make by itself.
    """
    shared = {}
    for name, tensor in places.items():
        shared.setdefault(id(tensor), []).append(name)
    for alias, key in ((alias, key) for header in headers for alias, key in header["ties"].items()):
        if alias in places and key in places and alias not in shared[id(places[key])]:
            shared[id(places[key])].append(alias)
    return shared


def check_tensors(model, headers, names, places):
    """Raise one clear error unless each tensor of the files has a place in the model, and is of its shape and kind."""
    scales = scales_of(model)
    for path, header in headers.items():
        for key, (dtype, shape) in header["tensors"].items():
            if names.get(key) not in places:
                raise ValueError(
                    f"{path} holds {key!r}, for which a {type(model).__name__} has no place; what transformers "
                    "rebuilds on loading, such as experts, is for from_pretrained with qlib.hf"
                )
            place = places[names[key]]
            if shape != tuple(place.shape):
                raise ValueError(f"{path}: {key} is of shape {shape}; the model needs {tuple(place.shape)}")
            if dtype != place.dtype and not fits(dtype, place.dtype, scales.get(names[key])):
                raise ValueError(f"{path}: {key} is {dtype}; the model needs {place.dtype}")


def fits(stored, needed, scales=None):
    """Whether a tensor of one dtype may take the place of another: floats may, one for the other.

    Of a quantized layer's `scales` that does not go for a format which says the dtype, nor for a float8: nothing would
    calculate with it.
    """
    if scales is None:
        return stored.is_floating_point and needed.is_floating_point
    return scales == "float32" and {stored, needed} <= {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def scales_of(model):
    """{name of a tensor: the format of scales of its layer} of all scales and zero points in a quantized model."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLayer)]
    return {
        f"{name}.{part}": layer.scheme.scales
        for name, layer in layers
        for part in (*SCALE_PARTS[layer.scheme.scales], "zero_point")
    }


def names_in_model(model, keys):
    """{key of a checkpoint: its name in the model}; a key for which the model has no place is left out.

    transformers saves some models under other names than its classes use, and older checkpoints lack a prefix or call a
    weight gamma: its own rules say which name is meant. What it puts together from several tensors, such as the experts
    of a mixture, keeps its key.
    """
    places = model.state_dict()
    current = {key: with_current_part(key) for key in keys}
    if not hasattr(model, "base_model_prefix"):
        return {key: name for key, name in current.items() if name in places}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    names = {}
    for key, current_key in current.items():
        name, converter = rename_source_key(current_key, renamings, converters, model.base_model_prefix, places)
        if current_key in places or converter is not None:
            names[key] = current_key
        elif name in places:
            names[key] = name
    return names


def with_current_part(key):
    """The name of a tensor with the name that its part has now: "w.absmax", of NF4 weights, is "w.scale"."""
    layer, dot, part = key.rpartition(".")
    return f"{layer}{dot}{OLD_PARTS.get(part, part)}"


# ---------------------------------------------------------------- a checkpoint, tensor by tensor


def quantize_checkpoint(source, folder, scheme, ignore=("lm_head",)):
    """Quantize a checkpoint of transformers without loading the model: one tensor is held at a time.

    The result is what `save_quantized` would have written of the quantized model. When the work is interrupted, the
    files that were finished stay in a hidden folder, in `folder` or beside it, and the same call goes on after them.

    What transformers itself rebuilds on loading, such as the experts of a mixture, is copied as it is; a checkpoint
    with such tensors is for `from_pretrained` (see qlib.hf) and not for `load_quantized`.

    The other files of `source` are copied, but for pickles. What a link leads to is copied where it belongs to the
    checkpoint (it lies in `source`, or in the Hub's cache); other links are left out with a warning.

    Args:
        source: a folder with config.json and the weights in safetensors files.
        folder: where to; it must not be `source`, nor lie in it.
        scheme: a Scheme, for rounding. The methods beyond it want the model itself.
        ignore: as for `quantize_model`.

    Returns:
        the names of the layers that were quantized.

    Raises:
        FileNotFoundError: `source` lacks a file.
        ValueError: a file is cut off or foreign, or changes while it is read; a weight is missing or cannot be
            quantized; the message names both. Or another process is quantizing to the same folder.
    """
    source, folder = real_path(source), real_path(folder)
    if source == folder or source in folder.parents:
        where = "is the checkpoint itself" if source == folder else f"lies in the checkpoint {source}"
        raise ValueError(f"{folder} {where}; write the quantized one to another folder, outside it")
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a qlib.Scheme, such as Scheme(bits=8), not {scheme!r}")
    with opened_folder(source) as (config, generation, files):
        if "quantization_config" in config:
            raise ValueError(f"{source / CONFIG} says that this checkpoint is quantized already")
        headers = {file: file.header for file in files}
        model = empty_model(source, config, generation, headers)
        chosen, places = choose_layers(model, ignore)[0], places_of(model)
        layers = {f"{place}.weight": model.get_submodule(name) for name in chosen for place in places[name]}
        names = names_in_model(model, [key for header in headers.values() for key in header["tensors"]])
        homeless = [key for header in headers.values() for key in header["tensors"] if key not in names]
        if homeless:
            warnings.warn(
                f"{source}: {len(homeless)} tensors are left out, such as {homeless[0]!r}: the model has no place for "
                "them",
                stacklevel=2,
            )
        check_weights(source, headers, names, layers)
        check_floats(headers, names, layers)

        entries = {name: empty_layer(model.get_submodule(name), name, scheme).settings() for name in chosen}
        method = {"quant_method": METHOD, "layers": entries}
        with begun_folder(folder, {file.name: list(file.state()) for file in files} | method) as new:
            weight_map = {}
            for file, header in headers.items():
                plan = {
                    key: planned_tensors(names[key], header["tensors"][key], layers, scheme)
                    for key in header["tensors"]
                    if key in names
                }
                weight_map |= dict.fromkeys([name for tensors in plan.values() for name in tensors], file.name)
                if not is_whole(new / file.name):
                    quantize_file(file, new / file.name, plan, names, layers, scheme)
            if len(headers) > 1:
                total = sum(path.stat().st_size for path in new.glob("*.safetensors"))
                write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            copy_companions(source, new, but=PICKLES)
            write_json(new / CONFIG, config | {"quantization_config": method})
    return chosen


def is_whole(path):
    """Whether a file is a whole safetensors file: one that an earlier call finished."""
    try:
        return bool(file_header(path))
    except (FileNotFoundError, ValueError):
        return False


def check_floats(headers, names, layers):
    """Raise one clear error unless every weight that is to be quantized is of floating-point numbers."""
    for file, header in headers.items():
        for key, (dtype, _) in header["tensors"].items():
            if names.get(key) in layers and not dtype.is_floating_point:
                raise ValueError(f"{file}: {key} is {dtype}; a weight to quantize must be of floating-point numbers")


def check_weights(source, headers, names, layers):
    """Raise one clear error unless every layer's weight is in a file of `source`, in its shape."""
    found = {id(layers[name]) for name in names.values() if name in layers}  # under one name, if it has several
    missing = [name for name, layer in layers.items() if id(layer) not in found]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]!r}, a weight that is to be quantized")
    for path, header in headers.items():
        for key, (_, shape) in header["tensors"].items():
            layer = layers.get(names.get(key))
            if layer is not None and tuple(shape) != tuple(layer.weight.shape):
                raise ValueError(
                    f"{path}: {key} is of shape {tuple(shape)}; the model needs {tuple(layer.weight.shape)}"
                )


def planned_tensors(name, stored, layers, scheme):
    """What one tensor of a checkpoint becomes: {name: (dtype, shape)}.

    Args:
        name: its name in the model.
        stored: its (dtype, shape) in the checkpoint.
        layers: {name of a weight to quantize: its layer, on the meta device}.
        scheme: a Scheme.
    """
    if name not in layers:
        return {name: stored}
    outputs, inputs = weight_of(layers[name], name).shape
    parts = QLinear(inputs, outputs, scheme, bias=False, device="meta").state_dict()
    return {
        f"{name.removesuffix('weight')}{part}": (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts.items()
    }


def quantize_file(source, target, plan, names, layers, scheme):
    """Quantize one safetensors file into another, tensor by tensor; `plan` is {key: planned_tensors}."""
    planned = {name: kind for tensors in plan.values() for name, kind in tensors.items()}
    with written_file(target, planned) as write:
        for key in progress_bar(list(plan), f"quantizing {source.name}"):
            layer = layers.get(names[key])
            # Nothing here keeps the tensor that was read: it is gone before the next one is.
            for name, part in parts_of(names[key], source.read(key), layer, scheme, f"{source}: {key}").items():
                write(name, part)
            del part


def parts_of(name, tensor, layer, scheme, origin):
    """{name: tensor} to be written in the place of one tensor: itself, or a QTensor's parts if there is a `layer`."""
    if layer is None:
        return {name: tensor}
    qtensor = quantize_tensor(tensor.T if is_conv1d(layer) else tensor, scheme, origin)
    return {f"{name.removesuffix('weight')}{part}": values for part, values in qtensor.parts.items()}
