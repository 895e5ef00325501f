"""Fast paths of the quantized linear layer on the CPU, in Numba, and the one place that chooses among them.

The kernels read the packed bytes just as they are stored. There is no second layout of the weight to make, to keep
or to forget, so a layer's buffers may be replaced, moved or written to at any time. It is the input that is laid out
for the weight: it is small, and that is done once a call.

A row is read in *units* of whole words of 32 bits that hold whole values: at 4 and 2 bits a unit is one word of 8 or 16
values; at 3 bits it is three words of 32 values. With u[k] the k-th word, value j of it stands in the bits
`mask << (bits * j)`, so that

    sum over i of code[i] * x[i]  =  sum over k and j of float(u[k] & (mask << (bits * j))) * plane[j, k]

where plane[j, k] = x[values * k + j] / 2**(bits * j). Nothing is shifted, for the power of two is divided out of x;
nothing is shuffled, for neighbouring lanes of a vector register hold neighbouring words. Codes are counted up from
the smallest integer (code = q - qmin), and the zero point leaves the loop: in a group of one scale

    sum of scale * (q - zero_point) * x  =  scale * (sum of code * x  +  (qmin - zero_point) * sum of x)

At 8 bits there is nothing to mask, and a unit is a byte. So it is, or the fewest bytes that hold whole values, where
groups do not fill whole words, and at 5, 6 and 7 bits.

All sums are float32, whatever the dtype of x, so a result differs from that of the plain formula by the order of its
sums alone. More rows in bfloat16 are the exception: see `block_dtype`.
"""

import functools
import math
import os
from typing import NamedTuple

import torch

from qlib.affine import quant_range
from qlib.console import word_after

try:
    import numba
    import numpy as np
    from llvmlite import ir
    from numba import njit, prange, types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError:  # the plain formula does all the work
    numba = None

    def intrinsic(function):
        return function


# Up to this many rows of x for each of two threads meet the packed weight itself; more meet blocks of it, dequantized.
FEW_ROWS = 8
# Weights dequantized at a time, at most: 768 rows of 4096. They stay in the cache, and the next take the same memory.
BLOCK_SIZE = 768 * 4096
# Multiplications below which a second thread costs more than it saves.
ONE_THREAD = 1 << 18
# Words in a unit, for the widths that are read in whole words.
WORDS = {4: 1, 3: 3, 2: 1}
# Units in a span, at most, where a whole row shares one scale.
LONGEST_SPAN = 1024

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# PyTorch's own name for oneDNN's x @ weight.T + bias; PyTorch compiles linear layers to it.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

# What a kernel takes for None.
NO_BIAS, NO_ZERO_POINT = torch.empty(0), torch.empty(0, 0, dtype=torch.int8)

# So many bytes ahead a kernel asks for the words that it will read, since memory takes long to answer.
AHEAD = 1 << 15

# Numba makes vector code of a loop that copies a number to at most this many places.
LANES = 8

# Sums may change their order and products be fused into them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz"}


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
        (..., out_features), of the dtype of x.
    """
    rows, in_features = packed.shape[0], x.shape[-1]
    batch = x.numel() // in_features
    flat, lift = x.reshape(batch, in_features), None
    scale = scale.float()  # which leaves a float32 one as it is
    if plan.by_column:
        flat, lift = fold_columns(flat, scale, zero_point)
        scale, zero_point = torch.ones(rows, 1), None
    elif scale.ndim == 0:
        scale, zero_point = (None if part is None else part.repeat(rows, 1) for part in (scale, zero_point))
    bias = NO_BIAS if bias is None else bias.float()
    zero_point = NO_ZERO_POINT if zero_point is None else zero_point
    few = batch <= FEW_ROWS * min(torch.get_num_threads(), 2)
    way = through_rows if few else through_blocks
    out = way(flat, packed, scale, zero_point, bias, plan)
    if lift is not None:
        out += lift
    return out.to(x.dtype).reshape(*x.shape[:-1], rows)


def plan_for(scheme, in_features):
    """The Plan for a weight, or None where only the plain formula fits.

    The kernels ask for groups of whole units and of one length: no ragged last group, no group that ends inside a
    byte, and, where units are not of whole words, at least four to a span, or a vector register would stay empty.
    """
    values, octets = 8 // math.gcd(scheme.bits, 8), scheme.bits // math.gcd(scheme.bits, 8)
    group = in_features if scheme.group_size is None else min(scheme.group_size, in_features)
    readable = scheme.grid == "integer" and scheme.scales in ("float32", "float16", "bfloat16")
    if numba is None or not readable or in_features == 0 or in_features % group or group % values:
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
    """Multiply a few rows of x with the packed weight: each byte of it is read from memory once."""
    x, rows = x.float().contiguous(), packed.shape[0]
    if x.data_ptr() % 4:
        x = x.clone()
    out = torch.empty(x.shape[0], rows)
    kernel, _, sizes = makers(plan)
    run(kernel, sizes, x.numel() * rows, units_of(packed, plan), scale, zero_point, bias, x, out)
    return out


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
    memory = torch.empty(height, columns // (plan.values * plan.span), plan.values, plan.span)
    rounded = memory if dtype == torch.float32 else torch.empty_like(memory, dtype=dtype)
    for first in range(0, packed.shape[0], height):
        here = slice(first, min(first + height, packed.shape[0]))
        count = here.stop - first
        zeros = zero_point[here] if zero_point.numel() else zero_point
        run(kernel, sizes, count * columns, units[here], scale[here], zeros, memory[:count])
        if rounded is not memory:
            rounded[:count].copy_(memory[:count])
        yield rounded[:count].flatten(1)


def makers(plan):
    """What makes the kernel for a few rows of x, what makes the one that fills a block, and the sizes for both."""
    if plan.in_words:
        return row_kernel, fill_kernel, (plan.bits, plan.span // plan.groups)
    return bytes_row_kernel, bytes_fill_kernel, (plan.bits, plan.span)


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


# ---------------------------------------------------------------- the kernels


def row_kernel(bits, length, rows_of=range):
    """The kernel that multiplies packed rows with a few rows of x, for one width and one number of units in a group.

    It is for the widths that are read in whole words.
    """
    words_of_unit, parts, values = WORDS[bits], 4 if bits == 3 else 1, 8 if bits == 3 else 32 // bits
    mask, qmin = 2**bits - 1, quant_range(bits)[0]
    near = math.gcd(length, LANES)
    far = length // near

    def kernel(packed, scale, zero_point, bias, x, out):
        words = packed.view(np.uint32)
        rows, units = words.shape[0], words.shape[1] // words_of_unit
        batch, groups = x.shape[0], scale.shape[1]
        plane, sums = lay_out(x, units, values * parts, bits, values, groups)
        chunks = min(rows, 16)
        for c in rows_of(chunks):
            some, each = np.empty(groups * far, np.float32), np.empty(units, np.float32)
            for r in range(c * rows // chunks, (c + 1) * rows // chunks):
                fetch(words, r, AHEAD)
                spread(scale[r], far, near, some, each)
                for b in range(batch):
                    total = np.float32(0)
                    for k in range(units):
                        dot = np.float32(0)
                        for p in range(parts):
                            word = part_of_unit(words, r, words_of_unit * k, p)
                            for j in range(values):
                                if bits * (j + 1) == 32:  # the sign bit of an int32: shifted, not masked
                                    code = np.int32(word >> np.uint32(32 - bits))
                                else:
                                    code = np.int32(word & np.uint32(mask << (bits * j)))
                                dot += np.float32(code) * plane[b, values * p + j, k]
                        total += each[k] * dot
                    for g in range(groups):
                        zero = zero_point[r, g] if zero_point.size else 0
                        total += scale[r, g] * np.float32(qmin - zero) * sums[b, g]
                    out[b, r] = total + bias[r] if bias.size else total

    matrix = "float32[:,::1]"
    return kernel, f"(uint8[:,::1], {matrix}, int8[:,::1], float32[::1], {matrix}, {matrix})"


def fill_kernel(bits, length, rows_of=range):
    """The kernel that dequantizes packed rows into float32, to the bit as the plain formula does, for whole words.

    Value j of unit k goes to [j, k], so that neighbours are written side by side: in a row of the result the columns
    stand in another order than in the weight.
    """
    words_of_unit, parts, values = WORDS[bits], 4 if bits == 3 else 1, 8 if bits == 3 else 32 // bits
    mask, qmin = 2**bits - 1, quant_range(bits)[0]
    near = math.gcd(length, LANES)
    far = length // near

    def kernel(packed, scale, zero_point, out):
        words = packed.view(np.uint32)
        rows, units = words.shape[0], words.shape[1] // words_of_unit
        groups, chunks = scale.shape[1], min(rows, 16)
        for c in rows_of(chunks):
            part, zeros = np.empty(units, np.uint32), np.full(groups, -qmin, np.float32)
            some, each = np.empty(groups * far, np.float32), np.empty(units, np.float32)
            zero = np.empty_like(each)
            spread(zeros, far, near, some, zero)
            for r in range(c * rows // chunks, (c + 1) * rows // chunks):
                spread(scale[r], far, near, some, each)
                if zero_point.size:
                    for g in range(groups):
                        zeros[g] = zero_point[r, g] - qmin
                    spread(zeros, far, near, some, zero)
                for p in range(parts):
                    for k in range(units):
                        part[k] = part_of_unit(words, r, words_of_unit * k, p)
                    for j in range(values):
                        for k in range(units):
                            code = np.int32((part[k] >> np.uint32(bits * j)) & np.uint32(mask))
                            out[r, 0, values * p + j, k] = each[k] * (np.float32(code) - zero[k])

    return kernel, "(uint8[:,::1], float32[:,::1], int8[:,::1], float32[:,:,:,::1])"


def bytes_row_kernel(bits, span, rows_of=range):
    """What `row_kernel` is where units are of bytes, for one number of units in a span."""
    values, octets, mask, qmin = 8 // math.gcd(bits, 8), bits // math.gcd(bits, 8), 2**bits - 1, quant_range(bits)[0]
    # The lanes of a vector register are added up once for four short spans, or that would take longer than the rest.
    at_once = 4 if octets == 1 and span <= 128 else 1

    def kernel(packed, scale, zero_point, bias, x, out):
        rows, spans, _ = packed.shape
        batch, groups = x.shape[0], scale.shape[1]
        step = min(groups - 1, 1)  # a scale for every span, or the same one for all of them
        flat, sums = lay_out(x, spans * span, values, bits, values, groups)
        plane = flat.reshape(batch, values, spans, span)
        for r in rows_of(rows):
            for b in range(batch):
                total = np.float32(0)
                for q in range(spans // at_once):
                    part = np.float32(0)
                    for k in range(span):
                        for h in range(at_once):
                            s = q * at_once + h
                            unit = np.int64(packed[r, s, octets * k])
                            for o in range(1, octets):
                                unit |= np.int64(packed[r, s, octets * k + o]) << (8 * o)
                            dot = np.float32(0)
                            for j in range(values):
                                code = unit & (mask << (bits * j))
                                dot += np.float32(np.int32(code) if octets < 4 else code) * plane[b, j, s, k]
                            part += scale[r, s * step] * dot
                    total += part
                for s in range(spans // at_once * at_once, spans):
                    part = np.float32(0)
                    for k in range(span):
                        for j in range(values):
                            code = np.int32(packed[r, s, k] & (mask << (bits * j)))
                            part += np.float32(code) * plane[b, j, s, k]
                    total += scale[r, s * step] * part
                for g in range(groups):
                    zero = zero_point[r, g] if zero_point.size else 0
                    total += scale[r, g] * np.float32(qmin - zero) * sums[b, g]
                out[b, r] = total + bias[r] if bias.size else total

    matrix = "float32[:,::1]"
    return kernel, f"(uint8[:,:,::1], {matrix}, int8[:,::1], float32[::1], {matrix}, {matrix})"


def bytes_fill_kernel(bits, span, rows_of=range):
    """What `fill_kernel` is where units are of bytes: value j of unit k of span s goes to [s, j, k]."""
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


# ---------------------------------------------------------------- what the kernels share


@intrinsic
def prefetch(context, address):
    """Have the processor bring the bytes at an address closer, without waiting for them. It cannot fail."""

    def emit(_, builder, __, arguments):
        pointer, number = ir.PointerType(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, to_the_second_cache, data = number(0), number(2), number(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), to_read, to_the_second_cache, data])

    return types.void(types.intp), emit


def inlined(function):
    """A function that the kernels call, made part of them as they are compiled; without Numba it is left as it is."""
    return njit(fastmath=FASTMATH, inline="always")(function) if numba else function


@inlined
def lay_out(x, units, values, bits, fields, groups):
    """Rows of x in planes, (batch, values, units), each divided by its power of two; and the sums of their groups."""
    batch, inputs = x.shape
    plane, sums = np.empty((batch, values, units), np.float32), np.empty((batch, groups), np.float32)
    length = inputs // groups
    for b in range(batch):
        for j in range(values):
            power = np.float32(0.5 ** (bits * (j % fields)))
            if bits * (j % fields + 1) == 32:
                power = np.float32(1)
            for k in range(units):
                plane[b, j, k] = x[b, k * values + j] * power
        for g in range(groups):
            total = np.float32(0)
            for i in range(g * length, (g + 1) * length):
                total += x[b, i]
            sums[b, g] = total
    return plane, sums


@inlined
def spread(row, far, near, some, out):
    """Write each number of a row far * near times; in two steps, so that each is of a few copies."""
    for g in range(row.size):
        one = row[g]
        for i in range(far):
            some[g * far + i] = one
    for g in range(row.size * far):
        one = some[g]
        for i in range(near):
            out[g * near + i] = one


@inlined
def fetch(words, r, ahead):
    """Ask for as much as row r holds, so many bytes behind its beginning, whatever lies there.

    The processor looks ahead by itself, but not beyond a page, and a page is soon read at 2 bits a weight.
    """
    first = words.ctypes.data + 4 * words.shape[1] * r + ahead
    for at in range(first, first + 4 * words.shape[1], 64):  # the bytes that come at a time
        prefetch(at)


@inlined
def part_of_unit(words, r, first, p):
    """The word that holds part p of a unit: the unit's only word, or eight values of the 32 that three words hold."""
    at, low = first + (24 * p) // 32, (24 * p) % 32
    if low <= 8:
        return words[r, at] >> np.uint32(low)
    return (words[r, at] >> np.uint32(low)) | (words[r, at + 1] << np.uint32(32 - low))


def run(maker, sizes, work, *tensors):
    """Run a kernel on tensors, on as many threads as PyTorch uses; on one if there is little to multiply."""
    threads = 1 if work < ONE_THREAD else min(torch.get_num_threads(), threads_in_pool())
    kernel, arrays = (
        compiled(maker, sizes, threads > 1),
        [(tensor.detach() if tensor.requires_grad else tensor).numpy() for tensor in tensors],
    )
    if threads == 1:
        kernel(*arrays)
        return
    before = numba.get_num_threads()
    if before != threads:
        numba.set_num_threads(threads)
    try:
        kernel(*arrays)
    finally:
        if before != threads:
            numba.set_num_threads(before)


@functools.cache
def threads_in_pool():
    """How many of Numba's threads are worth using; the first call starts them.

    Where there is neither OpenMP nor TBB they belong to a simple pool of Numba's own, which serves one caller at a time
    and takes longer to wake them than they save: there one thread does it all.
    """
    before = torch.get_num_threads()
    numba.get_num_threads()  # which starts them, and sets the number of PyTorch's to that of the cores
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return 1 if numba.threading_layer() == "workqueue" else numba.config.NUMBA_NUM_THREADS


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


# The OpenMP pool of a process does not live on in a child that was forked from it: there it is the plain formula.
FORKED = False


def mark_fork():
    global FORKED
    FORKED = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=mark_fork)
