"""What the property tests share: schemes and tensors to draw, and what a scheme means, spelt out element by element."""

import itertools

import numpy as np
import torch
from hypothesis import example
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qlib import Scheme

GRANULARITIES = {
    "per tensor": {"axis": None},
    "per row": {"axis": 0},
    "per column": {"axis": 1},
    "per group": {"axis": 0, "group_size": 3},
}


def examples(*cases):
    """Cases that a property test tries by name each time, beside those that are drawn: edges that once went wrong."""

    def add(test):
        for case in reversed(cases):
            test = example(*case if isinstance(case, tuple) else (case,))(test)
        return test

    return add


@st.composite
def schemes(draw, **fixed):
    """Any Scheme that makes sense; `fixed` holds some of its arguments."""
    options = {"bits": draw(st.integers(2, 8)), "symmetric": draw(st.booleans())}
    options |= draw(st.sampled_from(list(GRANULARITIES.values())))
    if "group_size" in options:
        options["group_size"] = draw(st.integers(1, 9))
    return Scheme(**options | fixed)


@st.composite
def tensors(draw, min_dims=1, max_dims=4, min_side=1):
    """Finite tensors of 1 to 4 dimensions, float32, bfloat16, float16 or float64, some of them not contiguous."""
    shape = draw(arrays.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=7))
    reach = draw(st.sampled_from([1e-30, 1e-3, 1.0, 6e4]))
    numbers = st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0])
    values = draw(arrays.arrays(np.float32, shape, elements=numbers)) * np.float32(reach)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    tensor = torch.from_numpy(values).to(dtype) + draw(st.sampled_from([0.0, 0.0, 3.0, -50.0]))
    return uncontiguous(tensor) if draw(st.booleans()) else tensor


def uncontiguous(tensor):
    """The same values, spread out in memory with gaps of NaN between them, which nobody may read."""
    gaps = torch.full_like(tensor, float("nan"))
    return torch.stack([tensor, gaps], dim=-1)[..., 0]


def block_of(index, scheme):
    """Where, in the scale, the block stands that the element at `index` belongs to. The definition of granularity."""
    if scheme.axis is None:
        return ()
    if scheme.group_size is not None:
        return (*index[:-1], index[-1] // scheme.group_size)
    if len(index) == 1:  # a vector is one row
        return index if scheme.axis == 1 else (0,)
    return tuple(i if dim == scheme.axis else 0 for dim, i in enumerate(index))


def blocks(tensor, scheme):
    """{place in the scale: the elements that share it, a list of numbers}."""
    found = {}
    for index in itertools.product(*map(range, tensor.shape)):
        found.setdefault(block_of(index, scheme), []).append(tensor[index].item())
    return found


def at_each(qparam, tensor, scheme):
    """A scale or zero point per block as float64 per element of `tensor`, looked up element by element."""
    if qparam.ndim == 0:
        return torch.full(tensor.shape, qparam.item(), dtype=torch.float64)
    looked_up = [qparam[block_of(index, scheme)].item() for index in itertools.product(*map(range, tensor.shape))]
    return torch.tensor(looked_up, dtype=torch.float64).reshape(tensor.shape)
