"""Kernels of the quantized linear layer on the CPU, in Numba: they multiply packed codes, or make blocks of them real.

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
"""

import functools
import math

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from qlib.affine import quant_range
from qlib.console import word_after
from qlib.kernels import WORDS

# Multiplications below which a second thread costs more than it saves.
ONE_THREAD = 1 << 18

# So many bytes ahead a kernel asks for the words that it will read, since memory takes long to answer.
AHEAD = 1 << 15

# Numba makes vector code of a loop that copies a number to at most this many places.
LANES = 8

# Sums may change their order and products be fused into them; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz"}


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
                repeat_each(scale[r], far, near, some, each)
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
            repeat_each(zeros, far, near, some, zero)
            for r in range(c * rows // chunks, (c + 1) * rows // chunks):
                repeat_each(scale[r], far, near, some, each)
                if zero_point.size:
                    for g in range(groups):
                        zeros[g] = zero_point[r, g] - qmin
                    repeat_each(zeros, far, near, some, zero)
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
    """A function that the kernels call, made part of them as they are compiled."""
    return njit(fastmath=FASTMATH, inline="always")(function)


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
def repeat_each(row, far, near, some, out):
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


def launch(maker, sizes, work, *tensors):
    """Run a kernel on tensors, on as many threads as PyTorch uses; on one if there is little to multiply.

    Returns:
        the last of the tensors, which the kernel has filled, as a NumPy array.
    """
    threads = 1 if work < ONE_THREAD else min(torch.get_num_threads(), threads_in_pool())
    kernel, arrays = (
        compiled(maker, sizes, threads > 1),
        [(tensor.detach() if tensor.requires_grad else tensor).numpy() for tensor in tensors],
    )
    if threads == 1:
        kernel(*arrays)
        return arrays[-1]
    before = numba.get_num_threads()
    if before != threads:
        numba.set_num_threads(threads)
    try:
        kernel(*arrays)
    finally:
        if before != threads:
            numba.set_num_threads(before)
    return arrays[-1]


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
