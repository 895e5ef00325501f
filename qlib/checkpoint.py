"""Quantized tensors on disk: one safetensors file, written whole or not at all, read without unpickling anything."""

import dataclasses
import json
import os
import pathlib

import safetensors
import safetensors.torch
import torch

from qlib.scheme import Scheme
from qlib.tensor import QTensor, plain_tensors


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
    stored, ties, seen, storages = {}, {}, {}, set()
    for key, tensor in plain_tensors(tensors):
        if key in stored or key in ties:
            raise ValueError(f"two tensors would be stored as {key!r}; give the plain one another name")
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place in seen:
            ties[key] = seen[place]
            continue
        # safetensors refuses tensors that share memory, so a view of a storage that is in already is copied.
        storage = tensor.untyped_storage().data_ptr()
        own = tensor.detach().clone() if storage in storages else tensor.detach()
        stored[key] = own.contiguous()
        seen[place] = key
        storages.add(storage)
    header = {key: json.dumps(value) for key, value in (("schemes", schemes), ("shapes", shapes), ("ties", ties))}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + f".{os.getpid()}.unfinished")
    try:
        safetensors.torch.save_file(stored, unfinished, metadata={"format": "pt", **header})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
