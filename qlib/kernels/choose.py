"""The one place that chooses how a quantized linear layer is computed: on its packed codes, or on blocks made real.

All sums are float32, whatever the dtype of x, so a result differs from that of the plain formula by the order of its
sums alone. More rows in bfloat16 are the exception: see `block_dtype`.
"""

import functools
import importlib.util
import math
import os
from typing import NamedTuple

import torch

from qlib.kernels import WORDS

# Without Numba, or where it is told to compile nothing, the plain formula does all the work.
HAS_NUMBA = importlib.util.find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")

# Up to this many rows of x for each of two threads meet the packed weight itself; more meet blocks of it, dequantized.
FEW_ROWS = 8
# Weights dequantized at a time, at most: 768 rows of 4096. They stay in the cache, and the next take the same memory.
BLOCK_SIZE = 768 * 4096
# Units in a span, at most, where a whole row shares one scale.
LONGEST_SPAN = 1024

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# PyTorch's own name for oneDNN's x @ weight.T + bias; PyTorch compiles linear layers to it.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

# What a kernel takes for None.
NO_BIAS, NO_ZERO_POINT = torch.empty(0, dtype=torch.float32), torch.empty(0, 0, dtype=torch.int8)


class Plan(NamedTuple):
    """How the kernels read the weights of one scheme and one number of inputs: see `plan_for`.

    Units of whole words (`octets` is 4 or 12) make one span, the row. Units of bytes are cut into spans that share a
    scale: the groups, or equal pieces of a longer run.
    """

    bits: int
    values: int  # in a unit
    octets: int  # in a unit
    span: int
    by_column: bool
    groups: int  # scales in a row

    @property
    def in_words(self):
        """Whether units are of whole words; else they are of bytes."""
        return self.octets % 4 == 0

    @property
    def one_integer(self):
        """Whether a row is int8 integers that share one scale, so that the scale can wait until they are multiplied."""
        return self.bits == 8 and self.groups == 1


# ---------------------------------------------------------------- the one place that chooses


def linear(x, packed, scale, zero_point, bias, plan):
    """x @ weight.T + bias, by the fastest way that gives what `qlib.linear.plain_linear` gives; for what `fits`.

    Args:
        x: (..., in_features), of a floating dtype.
        packed, scale, zero_point: the weight's, as a QTensor has them; the zero point is None in symmetric mode.
        bias: (out_features,) or None.
        plan: what `plan_for` gave.

    Returns:
        (..., out_features), of the dtype of x. Or None where a row of x holds an infinity or a NaN, or sums overflow:
        the kernels take the zero points out of the sums, so they would give NaN where the plain formula does not.
    """
    rows, in_features = packed.shape[0], x.shape[-1]
    batch = x.numel() // in_features
    flat, lift = x.reshape(batch, in_features), None
    scale = scale.float()  # which leaves a float32 one as it is
    if plan.by_column:
        flat, lift = fold_columns(flat, scale, zero_point)
        scale, zero_point = torch.ones(rows, 1, dtype=torch.float32), None
    elif scale.ndim == 0:
        scale, zero_point = (None if part is None else part.repeat(rows, 1) for part in (scale, zero_point))
    bias = NO_BIAS if bias is None else bias.float()
    zero_point = NO_ZERO_POINT if zero_point is None else zero_point
    few = batch <= FEW_ROWS * min(torch.get_num_threads(), 2)
    way = through_rows if few else through_blocks
    out = way(flat, packed, scale, zero_point, bias, plan)
    if out is None or (lift is not None and not lift.isfinite().all()):
        return None
    if lift is not None:
        out += lift
    out = out if out.dtype is x.dtype else out.to(x.dtype)  # to ask for what is there costs as much as to reshape it
    return out.reshape(*x.shape[:-1], rows)


def plan_for(scheme, in_features):
    """The Plan for a weight, or None where only the plain formula fits.

    The kernels ask for groups of whole units and of one length: no ragged last group, no group that ends inside a
    byte, and, where units are not of whole words, at least four to a span, or a vector register would stay empty.
    """
    values, octets = 8 // math.gcd(scheme.bits, 8), scheme.bits // math.gcd(scheme.bits, 8)
    group = in_features if scheme.group_size is None else min(scheme.group_size, in_features)
    readable = scheme.grid == "integer" and scheme.scales in ("float32", "float16", "bfloat16")
    if not HAS_NUMBA or not readable or in_features == 0 or in_features % group or group % values:
        return None
    groups, by_column = in_features // group, scheme.axis == 1
    if scheme.bits in WORDS and group % (32 * WORDS[scheme.bits] // scheme.bits) == 0:
        values = 32 * WORDS[scheme.bits] // scheme.bits
        return Plan(scheme.bits, values, 4 * WORDS[scheme.bits], in_features // values, by_column, groups)
    # A whole row is cut into at least four spans, as long as they can be.
    units = group // values
    span = units if groups > 1 else math.gcd(units // 4 if units % 4 == 0 else units, LONGEST_SPAN)
    if span < 4:
        return None
    return Plan(scheme.bits, values, octets, span, by_column, groups)


def fits(x, packed, scale, zero_point, bias, in_features, plan):
    """Whether a kernel may be used for these very tensors, here and now. It takes a few microseconds."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or FORKED:
        return False
    qparam_shape = (1, in_features) if plan.by_column else (packed.shape[0], plan.groups)
    return (
        type(x) is torch.Tensor  # and nothing that only looks like one
        and x.dtype in FLOATS
        and x.ndim > 0
        and x.shape[-1] == in_features
        and is_plain(x)
        and is_plain(packed, torch.uint8)
        and packed.shape[1] * plan.values == in_features * plan.octets
        and packed.shape[0] > 0
        and scale.dtype in FLOATS
        and is_plain(scale, scale.dtype)
        and (scale.shape == qparam_shape or scale.ndim == 0)
        and (zero_point is None or (is_plain(zero_point, torch.int8) and zero_point.shape == scale.shape))
        and (bias is None or (is_plain(bias, bias.dtype) and bias.shape == packed.shape[:1]))
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and torch.autograd.forward_ad._current_level < 0
    )


def is_plain(tensor, dtype=None):
    """Whether a tensor is in this machine's memory, out of autograd's sight and, given a dtype, ready for a kernel."""
    if not tensor.is_cpu or (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    if dtype is None:
        return True
    aligned = tensor.data_ptr() % tensor.element_size() == 0
    return tensor.dtype is dtype and tensor.is_contiguous() and aligned


# ---------------------------------------------------------------- the ways


def fold_columns(x, scale, zero_point):
    """Take the scales of a weight's columns into the input, and what the zero points take off into one number a row.

    sum over i of scale[i] * (q[i] - z[i]) * x[i]  =  sum of q[i] * y[i]  -  sum of z[i] * y[i],  y[i] = scale[i] * x[i]

    Args:
        x: (batch, in_features).
        scale, zero_point: (1, in_features); the zero point may be None.

    Returns:
        (y, lift): float32 of the shape of x; and (batch, 1), or None without a zero point.
    """
    folded = x.float() * scale
    return folded, None if zero_point is None else -(folded @ zero_point.float().T)


def through_rows(x, packed, scale, zero_point, bias, plan):
    """Multiply a few rows of x with the packed weight: each byte of it is read from memory once.

    None where a row of x is not finite: then none of its outputs is, be it the first.
    """
    x, rows = x.float().contiguous(), packed.shape[0]
    if x.data_ptr() % 4:
        x = x.clone()
    out = x.new_empty(x.shape[0], rows)
    kernel, _, sizes = makers(plan)
    tensors = units_of(packed, plan), scale, zero_point, bias, x, out
    made = kernels().launch(kernel, sizes, x.numel() * rows, *tensors)
    return out if math.isfinite(made[0, 0] if len(made) == 1 else sum(made[:, 0].tolist())) else None


def through_blocks(x, packed, scale, zero_point, bias, plan):
    """Multiply many rows of x with the weight, made real a block of rows at a time in the same memory.

    A whole float32 weight would not stay in the cache, and memory of its size is mapped and cleared anew at each call.
    """
    dtype, height = block_dtype(x.dtype), block_height(packed.shape[0], x.shape[1])
    x = x.to(dtype)
    if plan.one_integer:
        blocks = integer_blocks(packed, zero_point, height, dtype)
    else:
        x = x.unflatten(1, (-1, plan.span, plan.values)).transpose(2, 3).flatten(1)  # as the columns of a block lie
        blocks = real_blocks(packed, scale, zero_point, plan, height, dtype)
    x = x.contiguous()
    products = [product(x, block) for block in blocks]
    out = products[0] if len(products) == 1 else torch.cat(products, dim=1)
    if plan.one_integer:
        out *= scale.T
    return out + bias if bias.numel() else out


def block_height(rows, columns):
    """How many rows of a weight make a block, so that all blocks but the last are alike and none is too large."""
    return math.ceil(rows / math.ceil(rows * columns / BLOCK_SIZE))


def integer_blocks(packed, zero_point, height, dtype):
    """Rows of a weight without their scales, `height` at a time: int8 integers less their zero points.

    Each block takes the memory of the one before. bfloat16 holds every whole number up to 256, so it loses nothing.
    """
    memory = torch.empty(height, packed.shape[1], dtype=dtype)
    for first in range(0, packed.shape[0], height):
        codes = packed[first : first + height]
        block = memory[: codes.shape[0]].copy_((codes ^ 128).view(torch.int8))
        if zero_point.numel():
            block -= zero_point[first : first + height]
        yield block


def real_blocks(packed, scale, zero_point, plan, height, dtype):
    """Rows of a weight, dequantized, `height` at a time.

    Each block takes the memory of the one before. Its columns stand in the order of the kernels' planes: see
    `fill_kernel`.
    """
    _, kernel, sizes = makers(plan)
    units, columns = units_of(packed, plan), packed.shape[1] // plan.octets * plan.values
    sizes_of_block = height, columns // (plan.values * plan.span), plan.values, plan.span
    memory = torch.empty(sizes_of_block, dtype=torch.float32)
    rounded = memory if dtype == torch.float32 else torch.empty_like(memory, dtype=dtype)
    for first in range(0, packed.shape[0], height):
        here = slice(first, min(first + height, packed.shape[0]))
        count = here.stop - first
        zeros = zero_point[here] if zero_point.numel() else zero_point
        kernels().launch(kernel, sizes, count * columns, units[here], scale[here], zeros, memory[:count])
        if rounded is not memory:
            rounded[:count].copy_(memory[:count])
        yield rounded[:count].flatten(1)


def makers(plan):
    """What makes the kernel for a few rows of x, what makes the one that fills a block, and the sizes for both."""
    if plan.in_words:
        return kernels().row_kernel, kernels().fill_kernel, (plan.bits, plan.span // plan.groups)
    return kernels().bytes_row_kernel, kernels().bytes_fill_kernel, (plan.bits, plan.span)


@functools.cache
def kernels():
    """The module of the kernels, loaded when the first is needed: Numba takes as long to import as all the rest."""
    from qlib.kernels import numba_kernels

    return numba_kernels


def units_of(packed, plan):
    """A packed weight as its kernels take it: rows of bytes, or of spans of bytes."""
    return packed if plan.in_words else packed.view(packed.shape[0], -1, plan.octets * plan.span)


def product(x, block):
    """x @ block.T, by oneDNN where PyTorch has it.

    PyTorch itself leaves float32 to another library, MKL on x86, which on some CPUs takes up to 1.4 times as long.
    """
    return ONEDNN(x, block, None, "none", [], "") if ONEDNN else x @ block.T


def block_dtype(dtype):
    """The dtype in which more rows than a few are multiplied, by that of x.

    bfloat16 is worth it where the CPU has instructions for it: about twice the speed of float32. It keeps 8 bits of
    each factor, so the result is off by some 0.3% of the size of its terms. A bfloat16 x has no more to lose. A float32
    x has, so it stays float32 unless the program has told PyTorch that it may be multiplied in bfloat16, with
    `torch.set_float32_matmul_precision("medium")`. Where the CPU has no such instructions, and for float16, it is
    float32.
    """
    allowed = dtype == torch.bfloat16 or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium")
    return torch.bfloat16 if allowed and has_bfloat16() else torch.float32


@functools.cache
def has_bfloat16():
    """Whether this CPU multiplies bfloat16 faster than float32."""
    can = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


# The OpenMP pool of a process does not live on in a child that was forked from it: there it is the plain formula.
FORKED = False


def mark_fork():
    global FORKED
    FORKED = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=mark_fork)
