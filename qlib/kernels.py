"""Fast paths of the quantized linear layer on the CPU, in Numba, and the one place that chooses among them.

The kernels read the packed bytes just as they are stored. There is no second layout of the weight to make, to keep
or to forget, so a layer's buffers may be replaced, moved or written to at any time. It is the input that is laid out
for the weight: it is small, and that is done once a call.

Bytes hold whole *units* of values: one value a byte at 8 bits, two at 4, four at 2, eight in three bytes at 3. With
unit k read as one integer u[k], value j of it stands in the bits `mask << (bits * j)`, so that

    sum over i of code[i] * x[i]  =  sum over k and j of float(u[k] & (mask << (bits * j))) * plane[j, k]

where plane[j, k] = x[values * k + j] / 2**(bits * j). Nothing is shifted, for the power of two is divided out of x;
nothing is shuffled, for neighbouring lanes of a vector register hold neighbouring units. Codes are counted up from
the smallest integer (code = q - qmin), and the zero point leaves the loop: in a group of one scale

    sum of scale * (q - zero_point) * x  =  scale * (sum of code * x  +  (qmin - zero_point) * sum of x)

All sums are float32, whatever the dtype of x, so a result differs from that of the plain formula by the order of its
sums alone. More rows in bfloat16 are the exception: see `block_dtype`.
"""

import contextlib
import functools
import math
import os
import sys
import threading
from typing import NamedTuple

import torch

from qlib.affine import quant_range
from qlib.tensor import QTensor

try:
    import numba
    import numpy as np
    from numba import njit, prange
except ImportError:  # the plain formula does all the work
    numba = None

# Up to this many rows of x for each of two threads meet the packed weight itself; more meet blocks of it, dequantized.
FEW_ROWS = 8
# Weights dequantized at a time, 512 rows of 4096: they stay in the cache, and the next ones take the same memory.
BLOCK_SIZE = 512 * 4096
# Multiplications below which a second thread costs more than it saves.
ONE_THREAD = 1 << 18
# Units in a span, at most, where a whole row shares one scale.
LONGEST_SPAN = 1024

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# What a kernel takes for None.
NO_BIAS, NO_ZERO_POINT = torch.empty(0), torch.empty(0, 0, dtype=torch.int8)

# Shifts of a word that is to stay a word.
U8, U16, U24 = (np.uint32(bits) for bits in (8, 16, 24)) if numba else (8, 16, 24)

# Sums may change their order and products be fused into them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz"}

# The simplest of Numba's thread pools serves one caller at a time.
POOL = threading.Lock()


class Plan(NamedTuple):
    """How the kernels read the weights of one scheme and one number of inputs: see `plan_for`.

    A row is cut into spans of `span` units that share a scale: its groups, or equal pieces of a longer run.
    """

    bits: int
    values: int  # in a unit
    octets: int  # in a unit
    span: int
    by_column: bool
    groups: int  # scales in a row


# ---------------------------------------------------------------- the one place that chooses


def linear(x, qtensor_parts, bias, scheme, in_features, plan):
    """x @ weight.T + bias, by the fastest way that gives what `plain_linear` gives.

    Args:
        x: (..., in_features), of a floating dtype.
        qtensor_parts: the weight's packed codes, scale and zero point (None in symmetric mode), as a QTensor has them.
        bias: (out_features,) or None.
        scheme, in_features: of the weight.
        plan: what `plan_for(scheme, in_features)` gave.

    Returns:
        (..., out_features), of the dtype of x.
    """
    if plan is None or not fits(x, *qtensor_parts, bias, in_features, plan):
        return plain_linear(x, *qtensor_parts, bias, scheme, in_features)
    packed, scale, zero_point = qtensor_parts
    rows, batch = packed.shape[0], x.numel() // in_features
    flat, lift = x.detach().reshape(batch, in_features), None
    if plan.by_column:
        flat, lift = fold_columns(flat, scale, zero_point)
        scale, zero_point = torch.ones(rows, 1), None
    elif scale.ndim == 0:
        scale, zero_point = (None if part is None else part.repeat(rows, 1) for part in (scale, zero_point))
    bias = NO_BIAS if bias is None else bias.float()
    zero_point = NO_ZERO_POINT if zero_point is None else zero_point
    few = batch <= FEW_ROWS * min(torch.get_num_threads(), 2)
    product = through_rows if few else through_blocks
    out = product(flat, packed, scale, zero_point, bias, plan)
    if lift is not None:
        out += lift
    return out.to(x.dtype).reshape(*x.shape[:-1], rows)


def plain_linear(x, packed, scale, zero_point, bias, scheme, in_features):
    """The formula that all the others are measured against: unpack the weight, dequantize it, multiply.

    It works on any device, for any dtype and shape, under autograd and while a model is traced; the whole weight is
    in memory for as long as it takes.
    """
    zero_point = torch.zeros((), dtype=torch.int8) if zero_point is None else zero_point
    weight = QTensor.from_packed(packed, scale, zero_point, scheme, (packed.shape[0], in_features)).dequantize()
    return torch.nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def plan_for(scheme, in_features):
    """The Plan for a weight, or None where only the plain formula fits.

    The kernels ask for spans of whole units and of one length: no ragged last group, no group that ends inside a
    byte, and at least four units to a span, or a vector register would stay empty.
    """
    values, octets = 8 // math.gcd(scheme.bits, 8), scheme.bits // math.gcd(scheme.bits, 8)
    group = in_features if scheme.group_size is None else min(scheme.group_size, in_features)
    if numba is None or in_features == 0 or in_features % group or group % values:
        return None
    units, groups = group // values, in_features // group
    if scheme.bits == 3 and group % 32 == 0 and in_features >= 128:
        return Plan(3, 32, 12, in_features // 32, scheme.axis == 1, groups)  # 32 values in three words: `words_kernel`
    # A whole row is cut into at least four spans, as long as they can be.
    span = units if groups > 1 else math.gcd(units // 4 if units % 4 == 0 else units, LONGEST_SPAN)
    if span < 4:
        return None
    return Plan(scheme.bits, values, octets, span, scheme.axis == 1, groups)


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
        and (plan.octets != 12 or packed.data_ptr() % 4 == 0)
        and is_plain(scale, torch.float32)
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
    """Multiply a few rows of x with the packed weight: each byte of it is read from memory once."""
    x, rows = x.float().contiguous(), packed.shape[0]
    if x.data_ptr() % 4:
        x = x.clone()
    out = torch.empty(x.shape[0], rows)
    plane = torch.empty(x.shape[0], x.shape[1] // (plan.values * plan.span), plan.values, plan.span)
    sums = torch.zeros(x.shape[0], scale.shape[1])
    if plan.octets == 12:
        run(plane_kernel, (plan.bits, 8), 0, x, plane, torch.zeros(x.shape[0], 1))
        torch.sum(x.unflatten(1, (scale.shape[1], -1)), 2, out=sums)
        words = packed.view(torch.uint32)
        run(words_kernel, (), x.numel() * rows, words, scale, zero_point, bias, plane, sums, out)
    else:
        run(plane_kernel, (plan.bits, plan.values), 0, x, plane, sums)
        spans = packed.view(rows, -1, plan.octets * plan.span)
        run(row_kernel, (plan.bits, plan.span), x.numel() * rows, spans, scale, zero_point, bias, plane, sums, out)
    return out


def through_blocks(x, packed, scale, zero_point, bias, plan):
    """Multiply many rows of x with the weight, dequantized a block of rows at a time into the same memory.

    A whole float32 weight would not stay in the cache, and memory of its size is mapped and cleared anew at each call.
    The columns of a block, and of x to match, lie in the order of the kernels' planes: see `fill_kernel`.
    """
    rows, dtype = packed.shape[0], block_dtype(x.dtype)
    x = x.to(dtype).unflatten(1, (-1, plan.span, plan.values)).transpose(2, 3).flatten(1)
    out = torch.empty(x.shape[0], rows, dtype=dtype)
    three = plan.octets == 12
    stored = packed.view(torch.uint32) if three else packed.view(rows, -1, plan.octets * plan.span)
    maker, sizes = (fill_words_kernel, ()) if three else (fill_kernel, (plan.bits, plan.span))
    height = min(rows, max(1, BLOCK_SIZE // x.shape[1]))
    block = torch.empty(height, x.shape[1] // (plan.values * plan.span), plan.values, plan.span)
    rounded = block if dtype == torch.float32 else torch.empty_like(block, dtype=dtype)
    for first in range(0, rows, height):
        here = slice(first, min(first + height, rows))
        count = here.stop - first
        zeros = zero_point[here] if zero_point.numel() else zero_point
        # On one thread: after a product PyTorch's own threads keep their cores for a while, in case there is another.
        run(maker, sizes, 0, stored[here], scale[here], zeros, block[:count])
        if rounded is not block:
            rounded[:count].copy_(block[:count])
        torch.mm(x, rounded[:count].flatten(1).T, out=out[:, here])
    return out + bias if bias.numel() else out


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


# ---------------------------------------------------------------- the kernels


def row_kernel(bits, span, rows_of=range):
    """The kernel that multiplies packed rows with a few rows of x, for one width and one number of units in a span."""
    values, octets, mask, qmin = 8 // math.gcd(bits, 8), bits // math.gcd(bits, 8), 2**bits - 1, quant_range(bits)[0]
    # The lanes of a vector register are added up once for four short spans, or that would take longer than the rest.
    by_four = octets == 1 and span <= 128

    def kernel(packed, scale, zero_point, bias, plane, sums, out):
        rows, spans, _ = packed.shape
        batch, groups = sums.shape
        step = min(groups - 1, 1)  # a scale for every span, or the same one for all of them
        for r in rows_of(rows):
            for b in range(batch):
                total = np.float32(0)
                fours = spans // 4 if by_four else 0
                for q in range(fours):
                    part = np.float32(0)
                    for k in range(span):
                        for h in range(4):
                            dot = np.float32(0)
                            for j in range(values):
                                code = np.int32(packed[r, 4 * q + h, k] & (mask << (bits * j)))
                                dot += np.float32(code) * plane[b, 4 * q + h, j, k]
                            part += scale[r, (4 * q + h) * step] * dot
                    total += part
                for s in range(spans):
                    if s >= 4 * fours:
                        part = np.float32(0)
                        for k in range(span):
                            unit = np.int64(packed[r, s, octets * k])
                            for o in range(1, octets):
                                unit |= np.int64(packed[r, s, octets * k + o]) << (8 * o)
                            dot = np.float32(0)
                            for j in range(values):
                                code = unit & (mask << (bits * j))
                                dot += np.float32(np.int32(code) if octets < 4 else code) * plane[b, s, j, k]
                            part += scale[r, s * step] * dot
                        total += part
                for g in range(groups):
                    zero = zero_point[r, g] if zero_point.size else 0
                    total += scale[r, g] * np.float32(qmin - zero) * sums[b, g]
                out[b, r] = total + bias[r] if bias.size else total

    matrix = "float32[:,::1]"
    return kernel, f"(uint8[:,:,::1], {matrix}, int8[:,::1], float32[::1], float32[:,:,:,::1], {matrix}, {matrix})"


def plane_kernel(bits, values_of_unit):
    """The kernel that lays a few rows of x out in planes, each divided by its power of two, and sums its groups."""

    def kernel(x, plane, sums):
        batch, spans, values, span = plane.shape
        step = min(sums.shape[1] - 1, 1)
        for b in range(batch):
            for s in range(spans):
                here = x[b, s * span * values : (s + 1) * span * values]
                total = np.float32(0)
                for i in range(here.size):
                    total += here[i]
                sums[b, s * step] += total
                for j in range(values):
                    power = np.float32(0.5 ** (bits * (j % values_of_unit)))
                    for k in range(span):
                        plane[b, s, j, k] = here[k * values + j] * power

    return kernel, "(float32[:,::1], float32[:,:,:,::1], float32[:,::1])"


def fill_kernel(bits, span, rows_of=range):
    """The kernel that dequantizes packed rows into float32, to the bit as the plain formula does.

    Value j of unit k of span s goes to [s, j, k], so that neighbours are written side by side: in a row of the result
    the columns of each span stand in another order than in the weight.
    """
    values, octets, mask, qmin = 8 // math.gcd(bits, 8), bits // math.gcd(bits, 8), 2**bits - 1, quant_range(bits)[0]

    def kernel(packed, scale, zero_point, out):
        rows, spans, _ = packed.shape
        step = min(scale.shape[1] - 1, 1)
        for r in rows_of(rows):
            for s in range(spans):
                one = scale[r, s * step]
                zero = np.float32((zero_point[r, s * step] if zero_point.size else 0) - qmin)
                for j in range(values):
                    for k in range(out.shape[3]):  # a length that is known here would be unrolled, not vectorised
                        unit = np.int64(packed[r, s, octets * k])
                        for o in range(1, octets):
                            unit |= np.int64(packed[r, s, octets * k + o]) << (8 * o)
                        out[r, s, j, k] = one * (np.float32(np.int32((unit >> (bits * j)) & mask)) - zero)

    return kernel, "(uint8[:,:,::1], float32[:,::1], int8[:,::1], float32[:,:,:,::1])"


def words_kernel(rows_of=range):
    """What `row_kernel` is, for 3 bits, where whole words are read: 32 values in three of them, eight to a unit.

    Bytes three apart do not fill a vector register; words three apart do. All products of one place in the units are
    added up before a scale is looked for, so that short groups do not cut the register short.
    """

    def kernel(words, scale, zero_point, bias, plane, sums, out):
        rows, count = words.shape[0], words.shape[1] // 3
        batch, groups = sums.shape
        length = count // groups
        for r in rows_of(rows):
            dots = np.empty(count, np.float32)
            for b in range(batch):
                for k in range(count):
                    one, two, three = words[r, 3 * k], words[r, 3 * k + 1], words[r, 3 * k + 2]
                    dot = np.float32(0)
                    for j in range(8):
                        mask = np.uint32(7 << (3 * j))
                        dot += np.float32(np.int32(one & mask)) * plane[b, 0, j, k]
                        dot += np.float32(np.int32((one >> U24 | two << U8) & mask)) * plane[b, 0, 8 + j, k]
                        dot += np.float32(np.int32((two >> U16 | three << U16) & mask)) * plane[b, 0, 16 + j, k]
                        dot += np.float32(np.int32((three >> U8) & mask)) * plane[b, 0, 24 + j, k]
                    dots[k] = dot
                total = np.float32(0)
                for g in range(groups):
                    part = np.float32(0)
                    for k in range(g * length, (g + 1) * length):
                        part += dots[k]
                    zero = zero_point[r, g] if zero_point.size else 0
                    total += scale[r, g] * (part + np.float32(-4 - zero) * sums[b, g])
                out[b, r] = total + bias[r] if bias.size else total

    matrix = "float32[:,::1]"
    return kernel, f"(uint32[:,::1], {matrix}, int8[:,::1], float32[::1], float32[:,:,:,::1], {matrix}, {matrix})"


def fill_words_kernel(rows_of=range):
    """What `fill_kernel` is, for 3 bits, where whole words are read."""

    def kernel(words, scale, zero_point, out):
        rows, count = words.shape[0], words.shape[1] // 3
        length = count // scale.shape[1]
        for r in rows_of(rows):
            units, scales, zeros = (
                np.empty((4, count), np.int32),
                np.empty(count, np.float32),
                np.empty(count, np.float32),
            )
            for k in range(count):
                one, two, three = words[r, 3 * k], words[r, 3 * k + 1], words[r, 3 * k + 2]
                units[0, k] = one
                units[1, k] = one >> U24 | two << U8
                units[2, k] = two >> U16 | three << U16
                units[3, k] = three >> U8
            for g in range(scale.shape[1]):
                zero = np.float32((zero_point[r, g] if zero_point.size else 0) + 4)
                for k in range(g * length, (g + 1) * length):
                    scales[k], zeros[k] = scale[r, g], zero
            for q in range(4):
                for j in range(8):
                    for k in range(count):
                        code = (units[q, k] >> (3 * j)) & 7
                        out[r, 0, 8 * q + j, k] = scales[k] * (np.float32(code) - zeros[k])

    return kernel, "(uint32[:,::1], float32[:,::1], int8[:,::1], float32[:,:,:,::1])"


def run(maker, sizes, work, *tensors):
    """Run a kernel on tensors, on as many threads as PyTorch uses; on one if there is little to multiply."""
    threads = 1 if work < ONE_THREAD else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    kernel, arrays = (
        compiled(maker, sizes, threads > 1),
        [(tensor.detach() if tensor.requires_grad else tensor).numpy() for tensor in tensors],
    )
    if threads == 1:
        kernel(*arrays)
        return
    with POOL:
        start_pool()
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            kernel(*arrays)
        finally:
            numba.set_num_threads(before)


@functools.cache
def start_pool():
    """Start Numba's threads. That sets the number of PyTorch's to that of the cores, so it is put back."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@functools.cache
def compiled(maker, sizes, parallel):
    """The kernel that `maker` makes for these sizes, in machine code: compiled once, then kept on disk beside qlib.

    Compiling takes about a second. On a machine where it takes more than two it says so. For one thread there is a
    kernel of its own: those of the pool would wait for one another even if they had nothing to do.
    """
    # What goes round the rows is given to the maker, for Numba finds a kernel on the disk by what its code holds, and
    # not by its options: the two would be taken for one another.
    kernel, signature = maker(*sizes, prange) if parallel else maker(*sizes)
    options = {"parallel": parallel, "fastmath": FASTMATH}
    with word_after(2.0, f"qlib compiles {maker.__name__}{sizes} (once on this machine) …"):
        try:
            return njit(signature, cache=True, **options)(kernel)
        except RuntimeError:  # Numba found no folder that it may write to
            return njit(signature, **options)(kernel)


@contextlib.contextmanager
def word_after(seconds, text):
    """Print the text if what is inside takes longer; silent under test."""
    timer = threading.Timer(seconds, print, [text], {"file": sys.stderr})
    timer.daemon = True
    if os.environ.get("QLIB_STRICT") != "1":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


# The OpenMP pool of a process does not live on in a child that was forked from it: there it is the plain formula.
FORKED = False


def mark_fork():
    global FORKED
    FORKED = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=mark_fork)
