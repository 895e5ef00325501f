"""Quantized models on disk, in a folder laid out as the Hugging Face Hub has it: saved and loaded.

config.json says of each quantized layer what it takes to build it without a file.
"""

import functools
import json

import safetensors.torch
import torch

from qlib.console import progress_bar
from qlib.experts import PackedParameter, parameter_name
from qlib.files import tensors_in, unique_tensors
from qlib.folders import CONFIG, INDEX, folder_in_one_piece, opened_folder, real_path, write_json
from qlib.linear import WEIGHT_DTYPES, PackedLayer, QEmbedding, QLinear
from qlib.methods.rescale import DividedInput
from qlib.model import member_of, replace, still_on_meta, tell_transformers, tensors_of
from qlib.pretrained import conversions_for, convert, empty_model, is_made_anew, renamed, with_current_part
from qlib.tensor import SCALE_PARTS

METHOD = "qlib"  # what config.json calls the way a model was quantized

# The layers that quantizing leaves in a model, by what their entries in config.json call their kind.
KINDS = {"qlinear": QLinear, "embedding": QEmbedding, "parameter": PackedParameter, "divided_input": DividedInput}
DTYPE_OF_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES}
PLAIN = "qlinear"  # by far the most frequent kind, which an entry need not name
QUANTIZED = tuple(KINDS.values())

# ---------------------------------------------------------------- from a layer to its entry, and back


def entries_of(model):
    """{name of a layer: what config.json says of it}, of all quantized layers of a model.

    A layer that shares the packed weight of one before it says so: "shares" is the other's name.
    """
    entries, holders = {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, QUANTIZED):
            name = parameter_name(name) if isinstance(layer, PackedParameter) else name
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
            makers[name][0](
                float_layer(kind, settings), name
            )  # before anything is touched: do the settings make sense?
    except KeyError as missing:
        raise ValueError(f"{origin}: layer {name!r}: its entry lacks {missing}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: layer {name!r}: {error}") from None
    try:
        for name, (empty, _) in makers.items():
            training = model.get_submodule(name.rpartition(".")[0]).training
            layer = empty(member_of(model, name), name).to("meta")  # until the file is read
            replace(model, {name: layer.train(training)})
        for name, (_, shares) in makers.items():
            if shares is not None:
                share_weight(model, name, shares)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{origin} does not fit the model: {error}") from None


def float_layer(kind, settings):
    """A layer or parameter such as one of this kind and settings takes the place of, on the meta device."""
    if kind == "parameter":
        rows = settings["rows"]
        return torch.empty(rows if type(rows) is int and rows > 0 else 1, 1, device="meta")
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
    stored, ties = unique_tensors(stored_state(model).items())
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
        say_dtypes(model, headers, DTYPE_OF_NAME.get(config.get("dtype"), torch.float32))
    tell_transformers(model)
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
    dtype = {"dtype": str(dtype_of(model)).removeprefix("torch.")}
    return described | dtype | {"quantization_config": {"quant_method": METHOD, "layers": layers}}


def dtype_of(model):
    """The dtype that a model calculates in: that of its first float parameter, or of what its quantized layers were."""
    parameters = sorted(model.parameters(), key=lambda parameter: parameter.numel() == 0)  # which examples are
    return next((parameter.dtype for parameter in parameters if parameter.dtype in WEIGHT_DTYPES), torch.float32)


def stored_state(model):
    """A model's state dict as files hold it: less what they can do without.

    One empty tensor in the place of a float weight is enough to stop who takes the model for a float one, and of which
    dtype a layer was need be said only where it is not the model's.
    """
    state, dtype = model.state_dict(), dtype_of(model)
    for i, (name, layer) in enumerate(packed_layers(model)):
        if i:
            state.pop(layer.float_name(f"{name}."), None)
        if layer.example.dtype == dtype:
            state.pop(f"{name}.example", None)
    return state


def packed_layers(model):
    """[(name, PackedLayer)] of a model, a layer that stands in several places under each of its names."""
    modules = model.named_modules(remove_duplicate=False)
    return [(name, layer) for name, layer in modules if isinstance(layer, PackedLayer)]


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


def fill(model, headers, folder):
    """Read every tensor of a checkpoint into its place in the model, after all have been checked against it.

    Args:
        model: its tensors may be on the meta device.
        headers: {WeightFile: header}, see `file_header`.
        folder: what error messages call the whole.
    """
    places = model.state_dict(keep_vars=True)
    files = {key: path for path, header in headers.items() for key in header["tensors"]}
    conversions = conversions_of_own(model, places, headers)
    shared = names_of_tensors(places, headers.values())
    check_tensors(model, files, conversions, places)
    filled = {name for conversion in conversions for made in conversion.makes for name in shared[id(places[made])]}
    missing = sorted(places.keys() - filled)
    anew = [name for name in missing if is_made_anew(model, name)]
    if len(anew) < len(missing):
        lacking = next(name for name in missing if name not in anew)
        raise ValueError(f"{folder} lacks {lacking!r}, which a {type(model).__name__} needs")
    # By hand: the library's reader maps the file into memory, and a model must outlive the file it came from.
    for conversion in progress_bar(conversions, f"loading {folder.name}"):
        tensors = [files[key].read(key) for key in conversion.keys]
        for name, tensor in convert(model, conversion, tensors).items():
            put_tensor(model, shared[id(places[name])], tensor)
    if anew:
        make_anew(model, anew)


def make_anew(model, names):
    """Have a model of transformers make these tensors; what was read stays as it is."""
    for tensor in tensors_of(model).values():
        tensor._is_hf_initialized = True
    for module in model.modules():
        if not isinstance(module, PackedLayer):
            module._is_hf_initialized = False
    for name in names:
        put_tensor(model, [name], torch.empty_like(member_of(model, name), device="cpu"))
    model.initialize_weights()


def conversions_of_own(model, places, headers):
    """The Conversions of a quantized model's checkpoint: what has a name of the model is that, whatever the rules."""
    tensors = tensors_in(headers.values())
    for name, layer in packed_layers(model):
        tensors.pop(layer.float_name(f"{name}."), None)  # these are empty, see PackedLayer
        tensors.pop(f"{name}.example", None)
    own = {key for key in tensors if with_current_part(key) in places}
    others, homeless = conversions_for(model, {key: tensors[key] for key in tensors if key not in own})
    if homeless:
        path = next(path for path, header in headers.items() if homeless[0] in header["tensors"])
        raise ValueError(f"{path} holds {homeless[0]!r}, for which a {type(model).__name__} has no place")
    return [renamed(key, with_current_part(key), tensors[key]) for key in tensors if key in own] + others


def say_dtypes(model, headers, dtype):
    """Say of which dtype the float weight of each quantized layer was: what the files say, or else this one."""
    tensors = tensors_in(headers.values())
    for name, layer in packed_layers(model):
        layer.set_example(tensors.get(f"{name}.example", (dtype,))[0], "cpu")


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


def check_tensors(model, files, conversions, places):
    """Raise one clear error unless what becomes of each tensor of the files has the shape and kind of its place.

    Args:
        model: the model, for its name.
        files: {key: WeightFile}.
        conversions: list of Conversion.
        places: {name: tensor} of the model.
    """
    scales = scales_of(model)
    for conversion in conversions:
        key = conversion.keys[0]
        for name, (dtype, shape) in conversion.makes.items():
            if name not in places:
                raise ValueError(f"{files[key]} holds {key!r}, for which a {type(model).__name__} has no place")
            place = places[name]
            if shape != tuple(place.shape):
                raise ValueError(f"{files[key]}: {key} is of shape {shape}; the model needs {tuple(place.shape)}")
            if dtype != place.dtype and not fits(dtype, place.dtype, scales.get(name)):
                raise ValueError(f"{files[key]}: {key} is {dtype}; the model needs {place.dtype}")


def fits(stored, needed, scales=None):
    """Whether a tensor of one dtype may take the place of another: floats may, one for the other.

    Of a quantized layer's `scales` that does not go for a format which says the dtype, nor for a float8: nothing would
    calculate with it.
    """
    if scales is None:
        return stored.is_floating_point and needed.is_floating_point
    return scales == "float32" and {stored, needed} <= WEIGHT_DTYPES


def scales_of(model):
    """{name of a tensor: the format of scales of its layer} of all scales and zero points in a quantized model."""
    return {
        f"{name}.{part}": layer.scheme.scales
        for name, layer in packed_layers(model)
        for part in (*SCALE_PARTS[layer.scheme.scales], "zero_point")
    }
