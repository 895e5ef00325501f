"""Quantized tensors and models on disk: safetensors, written whole or not at all, read without unpickling anything.

`save_tensors` and `load_tensors` keep single tensors in one file. `save_quantized` and `load_quantized` keep a model in
a folder laid out as the Hugging Face Hub has it, and `quantize_checkpoint` turns such a folder into a quantized one
without ever holding the model.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import struct
import warnings

import safetensors
import safetensors.torch
import torch

from qlib.console import progress_bar
from qlib.kinds import empty_layers, entries_of, entry_of, quantizer_for
from qlib.linear import is_conv1d, weight_of
from qlib.model import choose_layers, empty_layer, places_of, replace_layers, still_on_meta
from qlib.scheme import Scheme
from qlib.tensor import QTensor, plain_tensors

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin
PLAN = "plan.json"  # in an unfinished folder: what it is going to be
METHOD = "qlib"  # what config.json calls the way a model was quantized
READS = "qlib reads safetensors alone"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODE_OF = {dtype: code for code, dtype in DTYPES.items()}


def save_tensors(tensors, path):
    """Write {name: tensor or QTensor} to one safetensors file. A QTensor's integers are written packed.

    The file is written under a temporary name and then renamed, so that an interrupted save leaves an older file
    whole. A tensor that has two names is stored once, and comes back as one tensor with two names; a view of part
    of another tensor is stored on its own.

    Args:
        tensors: {name: torch.Tensor or QTensor}.
        path: the file; its folder is made if need be.

    Raises:
        ValueError: two tensors would be stored under one key, such as a plain "w.packed" beside a QTensor "w".
    """
    path = pathlib.Path(path)
    quantized = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, QTensor)}
    schemes = {name: dataclasses.asdict(qtensor.scheme) for name, qtensor in quantized.items()}
    shapes = {name: list(qtensor.shape) for name, qtensor in quantized.items()}
    stored, ties = unique_tensors(plain_tensors(tensors))
    header = {key: json.dumps(value) for key, value in (("schemes", schemes), ("shapes", shapes), ("ties", ties))}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + f".{os.getpid()}.unfinished")
    try:
        safetensors.torch.save_file(stored, unfinished, metadata={"format": "pt", **header})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def unique_tensors(named):
    """Split pairs (key, tensor) into ({key: tensor} to store, {other key: key that is the same tensor}).

    Raises:
        ValueError: two tensors have one key.
    """
    stored, ties, seen, storages = {}, {}, {}, set()
    for key, tensor in named:
        if key in stored or key in ties:
            raise ValueError(f"two tensors would be stored as {key!r}; give the plain one another name")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place in seen and tensor.numel():
            ties[key] = seen[place]
            continue
        # safetensors refuses tensors that share memory, so a view of a storage that is in already is copied.
        storage = tensor.untyped_storage().data_ptr()
        own = tensor.detach().clone() if storage in storages else tensor.detach()
        stored[key] = own.contiguous()
        seen[place] = key
        storages.add(storage)
    return stored, ties


def load_tensors(path):
    """Read what `save_tensors` wrote: {name: tensor or QTensor}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off or foreign, or a part is missing or has another shape than its QTensor;
            the message names the file and the part.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from None
    if "schemes" not in header:
        raise ValueError(f"{path.name} was not written by qlib: its header lacks 'schemes'")
    tensors, name = {}, "header"
    try:
        schemes, shapes, ties = (json.loads(header[key]) for key in ("schemes", "shapes", "ties"))
        stored |= {key: stored[tied] for key, tied in ties.items()}
        for name, scheme in schemes.items():
            scheme = Scheme(**scheme)
            tensors[name] = QTensor.from_packed(
                stored.pop(f"{name}.packed"),
                stored.pop(f"{name}.scale"),
                torch.tensor(0, dtype=torch.int8) if scheme.symmetric else stored.pop(f"{name}.zero_point"),
                scheme,
                shapes[name],
            )
    except KeyError as missing:
        raise ValueError(f"{path.name} lacks {missing}") from None
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {name}: {error}") from None
    return tensors | stored


# ---------------------------------------------------------------- a model in a folder


def save_quantized(model, folder, tokenizer=None, max_shard_size="5GB"):
    """Write a quantized model as a folder that `load_quantized`, transformers and the Hub understand.

    The folder holds config.json, which says which layers are quantized and how, and the tensors in model.safetensors,
    or in several files and an index when they are larger than `max_shard_size`. It is written beside its place and then
    put there, so that an interrupted save leaves the folder that was there whole. Files of that folder that have
    nothing to do with weights, such as README.md, are kept.

    Args:
        model: a torch.nn.Module with quantized layers, such as `quantize_model` and the methods leave.
        folder: where to; its parent is made if need be.
        tokenizer: one of transformers, to go with the model, or None.
        max_shard_size: bytes, or a string such as "200MB".

    Raises:
        ValueError: no layer of the model is quantized, or a tensor has no values (it is on the meta device).
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
    folder = whole_folder(folder)
    config = read_json(folder / CONFIG)
    empties = empty_layers(layers_in(config, folder), folder / CONFIG)
    headers = {path: file_header(path) for path in weight_files(folder)}
    model = empty_model(folder, config) if model is None else model
    try:
        replace_layers(model, empties)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not fit the model: {error}") from None
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
    """{name of a layer: its entry} from what config.json says; see `qlib.kinds`."""
    path = folder / CONFIG
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        raise ValueError(f"{path} does not say that qlib quantized this model; load it as it is, then quantize_model")
    layers = quantization.get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{path} lacks quantization_config.layers, the schemes of the quantized layers")
    return layers


def empty_model(folder, config):
    """The float model that config.json describes: parameters on the meta device, buffers real, ties tied."""
    import accelerate
    import transformers

    architecture = (config.get("architectures") or [None])[0]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        what = f"the architecture {architecture!r}, which transformers lacks" if architecture else "no architecture"
        raise ValueError(f"{folder / CONFIG} names {what}: give load_quantized the model too")
    settings = transformers.AutoConfig.from_pretrained(folder)
    # Buffers that are in no file, such as the frequencies of a rotary embedding, are calculated here and must be real.
    with accelerate.init_empty_weights(include_buffers=False):
        model = model_class(settings)
    model.tie_weights()
    if (folder / "generation_config.json").exists() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def fill(model, headers, folder):
    """Read every tensor of a checkpoint into its place in the model, after all have been checked against it.

    Args:
        model: its tensors may be on the meta device.
        headers: {path: header}, see `file_header`.
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
            put_tensor(model, shared[id(places[names[key]])], read_tensor(path, key))


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
            both_float = dtype.is_floating_point and place.dtype.is_floating_point
            if dtype != place.dtype and not both_float:
                raise ValueError(f"{path}: {key} is {dtype}; the model needs {place.dtype}")


def names_in_model(model, keys):
    """{key of a checkpoint: its name in the model}; a key for which the model has no place is left out.

    transformers saves some models under other names than its classes use, and older checkpoints lack a prefix or call a
    weight gamma: its own rules say which name is meant. What it puts together from several tensors, such as the experts
    of a mixture, keeps its key.
    """
    places = model.state_dict()
    if not hasattr(model, "base_model_prefix"):
        return {key: key for key in keys if key in places}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    names = {}
    for key in keys:
        name, converter = rename_source_key(key, renamings, converters, model.base_model_prefix, places)
        if key in places or converter is not None:
            names[key] = key
        elif name in places:
            names[key] = name
    return names


# ---------------------------------------------------------------- a checkpoint, tensor by tensor


def quantize_checkpoint(source, folder, scheme, ignore=("lm_head",)):
    """Quantize a checkpoint of transformers without loading the model: one tensor is held at a time.

    The result is what `save_quantized` would have written of the quantized model. When the work is interrupted, the
    files that were finished stay in a hidden folder beside `folder`, and the same call goes on after them.

    What transformers itself rebuilds on loading, such as the experts of a mixture, is copied as it is; a checkpoint
    with such tensors is for `from_pretrained` (see qlib.hf) and not for `load_quantized`.

    Args:
        source: a folder with config.json and the weights in safetensors files.
        folder: where to; it must not be `source`.
        scheme: a Scheme, for rounding, or an NF4 (qlib.methods). What else there is of methods wants the model itself.
        ignore: as for `quantize_model`.

    Returns:
        the names of the layers that were quantized.

    Raises:
        FileNotFoundError: `source` lacks a file.
        ValueError: a file is cut off or foreign, a weight is missing or cannot be quantized; the message names both.
    """
    source, folder = pathlib.Path(source), pathlib.Path(folder)
    if source.resolve() == folder.resolve():
        raise ValueError(f"{folder} is the checkpoint itself; write the quantized one to another folder")
    _, layer_class = quantizer_for(scheme)
    config = read_json(source / CONFIG)
    if "quantization_config" in config:
        raise ValueError(f"{source / CONFIG} says that this checkpoint is quantized already")
    headers = {path: file_header(path) for path in weight_files(source)}
    model = empty_model(source, config)
    chosen, places = choose_layers(model, ignore)[0], places_of(model)
    layers = {f"{place}.weight": model.get_submodule(name) for name in chosen for place in places[name]}
    names = names_in_model(model, [key for header in headers.values() for key in header["tensors"]])
    homeless = [key for header in headers.values() for key in header["tensors"] if key not in names]
    if homeless:
        warnings.warn(
            f"{source}: {len(homeless)} tensors are left out, such as {homeless[0]!r}: the model has no place for them",
            stacklevel=2,
        )
    check_weights(source, headers, names, layers)

    entries = {name: entry_of(empty_layer(layer_class, scheme, model.get_submodule(name), name)) for name in chosen}
    method = {"quant_method": METHOD, "layers": entries}
    new = begun_folder(folder, {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in headers} | method)
    weight_map = {}
    for path, header in headers.items():
        plan = {
            key: planned_tensors(names[key], header["tensors"][key], layers, scheme)
            for key in header["tensors"]
            if key in names
        }
        weight_map |= dict.fromkeys([name for tensors in plan.values() for name in tensors], path.name)
        if not (new / path.name).exists():
            quantize_file(path, new / path.name, plan, names, layers, scheme)
    if len(headers) > 1:
        total = sum(path.stat().st_size for path in new.glob("*.safetensors"))
        write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    copy_missing(source, new, but=PICKLES)
    write_json(new / CONFIG, config | {"quantization_config": method})
    (new / PLAN).unlink()
    put_in_place(new, folder)
    return chosen


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
        scheme: a Scheme or an NF4.
    """
    if name not in layers:
        return {name: stored}
    outputs, inputs = weight_of(layers[name], name).shape
    _, layer_class = quantizer_for(scheme)
    parts = layer_class(inputs, outputs, scheme, bias=False, device="meta").state_dict()
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
            for name, part in parts_of(names[key], read_tensor(source, key), layer, scheme, f"{source}: {key}").items():
                write(name, part)
            del part


def parts_of(name, tensor, layer, scheme, origin):
    """{name: tensor} to be written in the place of one tensor: itself, or a QTensor's parts if there is a `layer`."""
    if layer is None:
        return {name: tensor}
    quantize, _ = quantizer_for(scheme)
    qtensor = quantize(tensor.T if is_conv1d(layer) else tensor, scheme, origin)
    return {f"{name.removesuffix('weight')}{part}": values for part, values in qtensor.parts.items()}


@contextlib.contextmanager
def written_file(path, planned):
    """A safetensors file written tensor by tensor: gives write(name, tensor); whole under its name, or not there.

    The library's own writer wants all tensors at once. The format: eight bytes that say how long the header is, the
    header in JSON, and the tensors' bytes at the places that the header names.

    Args:
        path: the file.
        planned: {name: (dtype, shape)} of all that will be written.
    """
    # Widest dtype first, so that every tensor begins at a multiple of its own width, as readers of the format expect.
    order = sorted(planned, key=lambda name: (-planned[name][0].itemsize, name))
    header, end = {"__metadata__": {"format": "pt", "ties": "{}"}}, 0
    for name in order:
        dtype, shape = planned[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODE_OF[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)

    def write(name, tensor):
        start, end = header[name]["data_offsets"]
        values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        if len(values) != end - start:
            raise ValueError(f"{name} takes {len(values)} bytes, not the {end - start} planned")
        file.seek(first + start)
        file.write(values)

    unfinished = path.with_name(f"{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(first + end)
        yield write
    os.replace(unfinished, path)


# ---------------------------------------------------------------- folders and files


def whole_folder(folder):
    """`folder` as a path; FileNotFoundError if there is none.

    A save that was killed between its two renames has left the older folder beside its place: it is put back.
    """
    folder = pathlib.Path(folder).absolute()
    replaced = beside(folder, "replaced")
    if not folder.exists() and replaced.exists():
        replaced.rename(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return folder


def beside(folder, what):
    """The hidden folder beside `folder` that holds what is `unfinished` or `replaced`."""
    return folder.with_name(f".{folder.name}.{what}")


def begun_folder(folder, plan):
    """The hidden folder in which `folder` is written: as an interrupted call with the same plan left it, or empty."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder")
    new = beside(folder, "unfinished")
    if not (new / PLAN).exists() or read_json(new / PLAN) != plan:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write_json(new / PLAN, plan)
    return new


@contextlib.contextmanager
def folder_in_one_piece(folder):
    """`with folder_in_one_piece(folder) as new:` what is written to `new` is `folder` at the end, or nothing is."""
    new = begun_folder(folder, {"process": os.getpid()})
    try:
        yield new
        (new / PLAN).unlink()
        put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new, folder):
    """Rename a finished folder to its place; of what was there, all files but the weights are kept."""
    folder = pathlib.Path(folder).absolute()
    replaced = beside(folder, "replaced")
    if folder.exists():
        copy_missing(folder, new, but={".safetensors"})
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    new.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def copy_missing(source, target, but):
    """Copy what `target` lacks of a folder, but for weights: files of the suffixes `but`, and indexes of them."""
    for path in source.iterdir():
        if path.suffix in {*but, ".safetensors"} or path.name.endswith(".index.json") or (target / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copy2(path, target / path.name)


def weight_files(folder):
    """The safetensors files of a checkpoint, in the order of its index."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or any(
            pathlib.Path(str(name)).name != name for name in weight_map.values()
        ):
            raise ValueError(f"{folder / INDEX} lacks a weight_map of the names of files beside it")
        files = [folder / name for name in dict.fromkeys(weight_map.values())]
    else:
        files = [folder / WEIGHTS]
    absent = [path for path in files if not path.is_file()]
    pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if absent and pickles:
        raise ValueError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read; {READS}"
        )
    if absent:
        raise FileNotFoundError(f"no file {absent[0]}")
    return files


def file_header(path):
    """What a safetensors file holds, no tensor read: {"tensors": {key: (dtype, shape)}, "ties": {other key: key}}."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            tensors = {key: (DTYPES[part.get_dtype()], tuple(part.get_shape())) for key, part in slices.items()}
            ties = json.loads((file.metadata() or {}).get("ties", "{}"))
    except safetensors.SafetensorError as error:
        with open(path, "rb") as file:
            if file.read(4).startswith(PICKLED):
                raise ValueError(f"{path} is a pickle, which can run code when it is read; {READS}") from None
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint that qlib reads: {error}") from None
    return {"tensors": tensors, "ties": ties}


def read_tensor(path, key):
    """One tensor of a safetensors file, read by hand: of the other tensors not a byte is read.

    The format (github.com/huggingface/safetensors): eight bytes that say how long the header is, lowest byte first; the
    header, JSON with each tensor's dtype, shape, and where its bytes begin and end, counted from the header's end.

    Raises:
        KeyError: the file has no such tensor.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
        start, _ = entry["data_offsets"]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        file.seek(8 + length + start)
        file.readinto(tensor.reshape(-1).view(torch.uint8).numpy())
    return tensor


def read_json(path):
    """What a JSON file holds, a dict; one clear error when it is missing or broken."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
