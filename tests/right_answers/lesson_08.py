"""Right answers of lesson 8, written differently from the library's."""

import math

import torch


def split_with_new_zeros(tensor, group_size):
    *rows, columns = tensor.shape
    groups = math.ceil(columns / group_size)
    filled = tensor.new_zeros((*rows, groups * group_size))
    filled[..., :columns] = tensor
    return filled.view(*rows, groups, group_size)


def split_a_group_at_a_time(tensor, group_size):
    pieces = []
    for start in range(0, tensor.shape[-1], group_size):
        piece = tensor[..., start : start + group_size]
        short = group_size - piece.shape[-1]
        pieces.append(torch.cat([piece, torch.zeros_like(piece[..., :1]).repeat_interleave(short, -1)], dim=-1))
    return torch.stack(pieces, dim=-2)


def split_with_unfold(tensor, group_size):
    short = (group_size - tensor.shape[-1] % group_size) % group_size
    return torch.nn.functional.pad(tensor, [0, short], "constant", 0).unfold(-1, group_size, group_size)


def expand_by_index(qparam, tensor, group_size=None):
    columns = tensor.shape[-1]
    if not torch.is_tensor(qparam) or qparam.dim() != tensor.dim() or qparam.shape[-1] in {1, columns}:
        return qparam
    if group_size is None:
        group_size, rest = divmod(columns, qparam.shape[-1])
        if rest:
            raise ValueError("unequal groups")
    index = torch.arange(columns) // group_size
    if index[-1] + 1 != qparam.shape[-1]:
        raise ValueError("the scales do not fit")
    return qparam[:, index]


def expand_by_stretching(qparam, tensor, group_size=None):
    columns = tensor.shape[-1]
    shape = getattr(qparam, "shape", ())
    if len(shape) < 2 or shape[-1] == 1 or shape[-1] == columns:
        return qparam
    rows, groups = shape
    if group_size is None and columns % groups != 0:
        raise ValueError(f"{groups} groups of {columns} columns")
    size = group_size or columns // groups
    if math.ceil(columns / size) != groups:
        raise ValueError(f"{groups} groups of {size}")
    return qparam.unsqueeze(2).expand(rows, groups, size).reshape(rows, groups * size).narrow(1, 0, columns)


ANSWERS = {
    "08.1": [split_with_new_zeros, split_a_group_at_a_time, split_with_unfold],
    "08.2": [expand_by_index, expand_by_stretching],
}
