"""A checkpoint of transformers quantized without the model: one tensor is held at a time."""

import dataclasses
import math
import warnings
from typing import NamedTuple

import torch

from qlib.checkpoint import METHOD
from qlib.console import progress_bar
from qlib.experts import PackedParameter, as_matrix, packed_name
from qlib.files import file_header, tensors_in, written_file
from qlib.folders import CONFIG, INDEX, PICKLES, begun_folder, copy_companions, opened_folder, real_path, write_json
from qlib.linear import PackedLayer, is_conv1d
from qlib.model import choose_layers, empty_layer, matrices_in, parameters_to_pack, places_of
from qlib.pretrained import conversions_for, convert, empty_model, is_made_anew
from qlib.report import QuantizedLayer, Report, bits_per_weight, sqnr
from qlib.scheme import Scheme
from qlib.tensor import quantize_tensor, stored_bytes


class Target(NamedTuple):
    """A weight of a checkpoint that is to be quantized.

    Args:
        layer: what the report calls it: the name of its layer, or its own if it is a parameter of experts.
        prefix: of the names of its parts.
        rows, transposed: how it lies as a matrix: see PackedParameter.
    """

    layer: str
    prefix: str
    rows: int
    transposed: bool = False


def quantize_checkpoint(source, folder, scheme, ignore=("lm_head",), other_weights=False):
    """Quantize a checkpoint of transformers without loading the model: one tensor is held at a time.

    The result is what `save_quantized` would have written of the quantized model. When the work is interrupted, the
    files that were finished stay in a hidden folder, in `folder` or beside it, and the same call goes on after them.

    What transformers puts together on loading, such as the experts of a mixture, is put together here: then the
    tensors of one layer's experts are held at a time.

    The other files of `source` are copied, but for pickles. What a link leads to is copied where it belongs to the
    checkpoint (it lies in `source`, or in the Hub's cache); other links are left out with a warning.

    Args:
        source: a folder with config.json and the weights in safetensors files.
        folder: where to; it must not be `source`, nor lie in it.
        scheme: a Scheme, for rounding. The methods beyond it want the model itself.
        ignore, other_weights: as for `quantize_model`.

    Returns:
        a Report; the SQNR of what an interrupted call had finished is NaN.

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
    with opened_folder(source) as (config, generation, opened):
        if "quantization_config" in config:
            raise ValueError(f"{source / CONFIG} says that this checkpoint is quantized already")
        headers = {file: file.header for file in opened}
        model = empty_model(source, config, generation, headers)
        packs = parameters_to_pack(model, ignore, other_weights)
        chosen, skipped = choose_layers(model, ignore, packs.keys())
        targets = targets_of(model, chosen, packs)
        conversions, homeless = conversions_for(model, tensors_in(headers.values()))
        if homeless:
            left_out = f"{len(homeless)} tensors are left out, such as {homeless[0]!r}"
            warnings.warn(f"{source}: {left_out}: the model has no place for them", stacklevel=2)
        files = {key: file for file, header in headers.items() for key in header["tensors"]}
        check_source(source, model, conversions, files, targets)

        floats = [kind[0] for conversion in conversions for name, kind in conversion.makes.items() if name in targets]
        dtype = floats[0] if floats else torch.float32
        method = {"quant_method": METHOD, "layers": entries_to_be(model, chosen, packs, scheme)}
        with begun_folder(folder, {file.name: list(file.state()) for file in opened} | method) as new:
            weight_map, sqnrs = {}, {}
            for file in opened:
                here = [conversion for conversion in conversions if files[conversion.keys[0]] is file]
                plan = planned_tensors(here, targets, scheme, dtype)
                weight_map |= dict.fromkeys(plan, file.name)
                if not is_whole(new / file.name):
                    sqnrs |= quantize_file(new / file.name, plan, model, here, files, targets, scheme)
            if len(opened) > 1:
                total = sum(path.stat().st_size for path in new.glob("*.safetensors"))
                write_json(new / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            copy_companions(source, new, but=PICKLES)
            in_config = {"dtype": str(dtype).removeprefix("torch."), "quantization_config": method}
            write_json(new / CONFIG, config | in_config)
    made = {name: kind for conversion in conversions for name, kind in conversion.makes.items()}
    return report_of(model, made, targets, skipped, scheme, sqnrs)


def entries_to_be(model, chosen, packs, scheme):
    """What `entries_of` will give of a model that is still float."""
    entries = {name: empty_layer(model.get_submodule(name), name, scheme).settings() for name in chosen}
    for name, layout in packs.items():
        packed = PackedParameter.empty(model.get_parameter(name), name, **layout, **scheme.settings())
        entries[name] = {"kind": "parameter"} | packed.settings()
    return entries


def targets_of(model, chosen, packs):
    """{name of a weight in the model: Target} of all that is to be quantized, a layer's under each of its names."""
    places, targets = places_of(model), {}
    for name in chosen:
        layer = model.get_submodule(name)
        transposed = is_conv1d(layer)
        for place in places[name]:
            targets[f"{place}.weight"] = Target(name, f"{place}.", layer.weight.shape[transposed], transposed)
    for name, layout in packs.items():
        targets[name] = Target(name, f"{packed_name(name)}.", **layout)
    return targets


def is_whole(path):
    """Whether a file is a whole safetensors file: one that an earlier call finished."""
    try:
        return bool(file_header(path))
    except (FileNotFoundError, ValueError):
        return False


def check_source(source, model, conversions, files, targets):
    """Raise one clear error unless every tensor of the model is in a file of `source`, in its shape, and weights float.

    Args:
        source, model, conversions, targets: see `quantize_checkpoint`.
        files: {key: WeightFile}.
    """
    places, found = model.state_dict(keep_vars=True), set()
    for conversion in conversions:
        key = conversion.keys[0]
        for name, (dtype, shape) in conversion.makes.items():
            if name not in places:
                raise ValueError(f"{files[key]}: {key} becomes {name}, for which a {type(model).__name__} has no place")
            needed = tuple(places[name].shape)
            if shape != needed:
                raise ValueError(f"{files[key]}: {key} is of shape {shape}; the model needs {needed}")
            if name in targets and not dtype.is_floating_point:
                raise ValueError(
                    f"{files[key]}: {key} is {dtype}; a weight to quantize must be of floating-point numbers"
                )
            found.add(id(places[name]))
    missing = [name for name, tensor in places.items() if id(tensor) not in found and not is_made_anew(model, name)]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]!r}, which a {type(model).__name__} needs")


def planned_tensors(conversions, targets, scheme, dtype):
    """What becomes of the tensors of one file of a checkpoint: {name: (dtype, shape)}.

    As in what `stored_state` gives, one empty tensor is enough, and no word of the dtype that config.json says.
    """
    planned, stopped = {}, False
    for name, kind in (made for conversion in conversions for made in conversion.makes.items()):
        if name not in targets:
            planned[name] = kind
            continue
        rows = targets[name].rows
        empty = PackedLayer(rows, math.prod(kind[1]) // max(rows, 1), scheme, device="meta").qtensor
        parts = stored_parts(name, targets[name], empty, kind[0])
        if kind[0] == dtype:
            del parts[f"{targets[name].prefix}example"]
        if stopped:
            del parts[name]
        planned |= {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts.items()}
        stopped = True
    return planned


def stored_parts(name, target, qtensor, dtype):
    """{name: tensor} that stand in a file for a quantized weight; in its own place an empty one, see PackedLayer."""
    empty = torch.empty(0, dtype=dtype)
    parts = qtensor.parts | {"example": empty}
    return {f"{target.prefix}{part}": tensor for part, tensor in parts.items()} | {name: empty}


def quantize_file(path, plan, model, conversions, files, targets, scheme):
    """Write one safetensors file of what conversions make, quantized; returns {name of a layer: SQNR}.

    Args:
        path: the file.
        plan: what `planned_tensors` gives.
        model, conversions, files, targets, scheme: see `quantize_checkpoint`.
    """
    sqnrs = {}
    with written_file(path, plan) as write:
        for conversion in progress_bar(conversions, f"quantizing {path.name}"):
            # Nothing here keeps a tensor that was read: it is gone before the next one is.
            made = convert(model, conversion, [files[key].read(key) for key in conversion.keys])
            for name in list(made):
                origin = f"{files[conversion.keys[0]]}: {name}"
                sqnrs |= write_quantized(write, plan, name, made.pop(name), targets.get(name), scheme, origin)
    return sqnrs


def write_quantized(write, plan, name, tensor, target, scheme, origin):
    """Write a tensor as it is, or what its `target` says it becomes; returns {name of a layer: SQNR}."""
    if target is None:
        write(name, tensor)
        return {}
    matrix = as_matrix(tensor, target.rows, target.transposed)
    qtensor = quantize_tensor(matrix, scheme, origin)
    for part, values in stored_parts(name, target, qtensor, tensor.dtype).items():
        if part in plan:
            write(part, values)
    return {target.layer: sqnr(matrix, qtensor.dequantize())}


def report_of(model, made, targets, skipped, scheme, sqnrs):
    """The Report of a checkpoint; `made` is {name of a tensor of the float model: its (dtype, shape)}."""
    places = model.state_dict(keep_vars=True)
    widths = {id(tensor): tensor.itemsize for tensor in places.values()}
    widths |= {id(places[name]): dtype.itemsize for name, (dtype, _) in made.items()}
    before = after = sum(dtype.itemsize * math.prod(shape) for dtype, shape in made.values())
    quantized = {}
    for name, target in targets.items():
        if name in made:
            weight = places[name]
            matrix = target.rows, weight.numel() // max(target.rows, 1)
            old, new = weight.numel() * widths[id(weight)], stored_bytes(matrix, scheme)
            line = target.layer, scheme, old, new, bits_per_weight(matrix, scheme), sqnrs.get(target.layer, math.nan)
            quantized[target.layer] = QuantizedLayer(*line)
            after += new - old
    left = []
    for layer in skipped:
        weights = matrices_in(model.get_submodule(layer.name))
        floats = [weight for key, weight in weights.items() if f"{layer.name}.{key}" not in targets]
        left.append(dataclasses.replace(layer, nbytes=sum(w.numel() * widths[id(w)] for w in floats)))
    return Report(list(quantized.values()), left, before, after)
