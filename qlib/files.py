"""Safetensors files, written whole or not at all, and read without unpickling anything."""

import contextlib
import json
import math
import os
import pathlib
import secrets
import struct

import safetensors
import safetensors.torch
import torch

from qlib.scheme import Scheme
from qlib.tensor import QTensor, part_dtypes, plain_tensors

PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin
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
    path = pathlib.Path(os.path.realpath(path))  # a link stays one: what it leads to is written
    quantized = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, QTensor)}
    schemes = {name: qtensor.scheme.settings() for name, qtensor in quantized.items()}
    shapes = {name: list(qtensor.shape) for name, qtensor in quantized.items()}
    stored, ties = unique_tensors(plain_tensors(tensors))
    header = {key: json.dumps(value) for key, value in (("schemes", schemes), ("shapes", shapes), ("ties", ties))}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.unfinished")
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
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
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
            if not isinstance(ties, dict) or not all(isinstance(key, str) for key in ties.values()):
                raise ValueError("its ties are no names by name")
    except safetensors.SafetensorError as error:
        with open(path, "rb") as file:
            if file.read(4).startswith(PICKLED):
                raise ValueError(f"{path} is a pickle, which can run code when it is read; {READS}") from None
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    except (KeyError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint that qlib reads: {error}") from None
    return {"tensors": tensors, "ties": ties}


def tensors_in(headers):
    """{key: (dtype, shape)} of all that files hold, from their headers: see `file_header`."""
    return {key: kind for header in headers for key, kind in header["tensors"].items()}


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


class WeightFile:
    """A safetensors file that is held open: another that is renamed to its place meanwhile changes nothing here.

    Args:
        path: the file. Error messages show it where they name the WeightFile.

    Raises:
        ValueError: it is not a whole safetensors file.
    """

    def __init__(self, path):
        self.path, self.name = path, path.name
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self.header = file_header(path)
        except BaseException:
            self.close()
            raise
        self.as_opened = self.state()

    def read(self, key):
        """One tensor; ValueError naming the file and the key if the file was cut off or written to meanwhile."""
        os.lseek(self.handle, 0, os.SEEK_SET)
        tensor = None
        with contextlib.suppress(KeyError, ValueError):  # as a header gives that is not there any more
            tensor = read_tensor(os.dup(self.handle), key)
        if tensor is None or self.state() != self.as_opened:
            raise ValueError(f"{self}: {key}: the file was cut off or written to while it was read")
        return tensor

    def state(self):
        """What changes when a file is written to: it tells of a missing byte, and of another one in its place."""
        status = os.fstat(self.handle)
        return status.st_size, status.st_mtime_ns

    def close(self):
        os.close(self.handle)

    def __str__(self):
        return str(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


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
        file.flush()
        os.fsync(file.fileno())  # the name says that the file is whole, after a power cut too
    os.replace(unfinished, path)
