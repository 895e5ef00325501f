"""Safetensors files and folders of them, written whole or not at all, and read without unpickling anything."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import struct

import safetensors
import safetensors.torch
import torch

from qlib.scheme import Scheme
from qlib.tensor import QTensor, part_dtypes, plain_tensors

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin
PLAN = "plan.json"  # in an unfinished folder: what it is going to be
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

# ---------------------------------------------------------------- single tensors


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
    schemes = {name: qtensor.scheme.settings() for name, qtensor in quantized.items()}
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
            parts = {part: stored.pop(f"{name}.{part}") for part in part_dtypes(scheme)}
            tensors[name] = QTensor.from_parts(parts, scheme, shapes[name])
    except KeyError as missing:
        raise ValueError(f"{path.name} lacks {missing}") from None
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {name}: {error}") from None
    return tensors | stored


# ---------------------------------------------------------------- a file, tensor by tensor


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


# ---------------------------------------------------------------- folders


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
