"""Quantized tensors on disk: one safetensors file, written whole or not at all, read without unpickling anything."""

import dataclasses
import json
import os
import pathlib

import safetensors
import safetensors.torch
import torch

from qlib.scheme import Scheme
from qlib.tensor import QTensor


def save_tensors(tensors, path):
    """Write {name: tensor or QTensor} to one safetensors file. A QTensor's integers are written packed.

    The file is written under a temporary name and then renamed, so that an interrupted save leaves an older file
    whole. A storage that two names share is written once, and both names come back.

    Args:
        tensors: {name: torch.Tensor or QTensor}.
        path: the file; its folder is made if need be.
    """
    path = pathlib.Path(path)
    stored, schemes, shapes, ties, seen = {}, {}, {}, {}, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, QTensor):
            schemes[name], shapes[name] = dataclasses.asdict(tensor.scheme), list(tensor.shape)
            stored[f"{name}.packed"], stored[f"{name}.scale"] = tensor.packed, tensor.scale
            if not tensor.scheme.symmetric:
                stored[f"{name}.zero_point"] = tensor.zero_point
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            ties[name] = seen[place]
        else:
            seen[place] = name
            stored[name] = tensor.contiguous()
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
        ValueError: the file is cut off, foreign, or lacks a part; the message names the file and the part.
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
    schemes, shapes, ties = (json.loads(header.get(key, "{}")) for key in ("schemes", "shapes", "ties"))
    tensors = {}
    try:
        for name, scheme in schemes.items():
            tensors[name] = QTensor.from_packed(
                stored.pop(f"{name}.packed"),
                stored.pop(f"{name}.scale"),
                torch.tensor(0, dtype=torch.int8) if scheme["symmetric"] else stored.pop(f"{name}.zero_point"),
                Scheme(**scheme),
                shapes[name],
            )
        return tensors | stored | {name: stored[tied] for name, tied in ties.items()}
    except KeyError as missing:
        raise ValueError(f"{path.name} lacks {missing}") from None
