"""Small integers side by side in bytes: the first value in the lowest bits, no bit left unused.

At 2 bits a byte holds four values, at 4 bits two; at 3 bits eight values fill three bytes. Eight values of b bits
are always b whole bytes, which is why `pack` and `unpack` work on eight at a time and need no case for any width.
Below them are the layouts of other systems, and functions that read the bits of a number: signed integers in two's
complement, and floats.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


def pack(values, bits):
    """Write values of `bits` bits one after the other into bytes, low bits first.

    Args:
        values: integers from 0 to 2**bits - 1, shape (..., count); only their low `bits` bits are kept.
        bits: width of a value, 1 to 8.

    Returns:
        uint8 tensor of shape (..., ceil(count * bits / 8)): each row is packed on its own, so that a row starts at
        a byte. pack([1, 0, 3, 2], 2) is [177], for 177 is 0b10_11_00_01.
    """
    values = torch.as_tensor(values)
    count = values.shape[-1]
    eights = torch.nn.functional.pad(values, (0, -count % 8)).unflatten(-1, (-1, 8))
    word = torch.zeros(eights.shape[:-1], dtype=torch.int64, device=values.device)
    for i in range(8):
        word |= (eights[..., i].long() & (2**bits - 1)) << (i * bits)
    octets = torch.stack([(word >> (8 * i)) & 255 for i in range(bits)], dim=-1)
    return octets.to(torch.uint8).flatten(-2)[..., : (count * bits + 7) // 8]


def unpack(packed, bits, count=None):
    """Read values of `bits` bits back out of bytes: the inverse of `pack`.

    Args:
        packed: uint8 tensor of shape (..., octets).
        bits: width of a value, 1 to 8.
        count: values in a row. None reads as many as the bytes hold whole, which may be a few more than were
            packed: the bits that fill up the last byte are zeros.

    Returns:
        uint8 tensor of shape (..., count), values from 0 to 2**bits - 1.

    Raises:
        ValueError: `packed` holds fewer than `count` values.
    """
    packed = torch.as_tensor(packed, dtype=torch.uint8)
    held = packed.shape[-1] * 8 // bits
    count = held if count is None else count
    if count > held:
        raise ValueError(f"{packed.shape[-1]} bytes hold {held} values of {bits} bits, not {count}")
    octets = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    word = torch.zeros(octets.shape[:-1], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        word |= octets[..., i].long() << (8 * i)
    eight = [((word >> (i * bits)) & (2**bits - 1)).to(torch.uint8) for i in range(8)]
    return torch.stack(eight, dim=-1).flatten(-2)[..., :count]


def pack_loop(values, bits):
    """Pack a row as `pack` does, one value after the other: slow, and plain to read.

    Value i begins at bit i * bits of the row.

    Args:
        values: integers, shape (count,); only their low `bits` bits are kept.
        bits: width of a value, 1 to 8.

    Returns:
        uint8 tensor of shape (ceil(count * bits / 8),).
    """
    packed = [0] * math.ceil(len(values) * bits / 8)
    for i, value in enumerate(values.tolist()):
        place, offset = divmod(i * bits, 8)
        code = value & (2**bits - 1)
        packed[place] |= (code << offset) & 255
        if offset + bits > 8:  # as 3, 5, 6 and 7 bits do: the value goes on in the next byte
            packed[place + 1] |= code >> (8 - offset)
    return torch.tensor(packed, dtype=torch.uint8)


def unpack_loop(packed, bits, count):
    """Unpack a row as `unpack` does, one value after the other: slow, and plain to read.

    Args:
        packed: uint8 tensor of shape (octets,).
        bits: width of a value, 1 to 8.
        count: values to read; the bytes must hold as many.

    Returns:
        uint8 tensor of shape (count,).
    """
    octets = packed.tolist()
    values = []
    for i in range(count):
        place, offset = divmod(i * bits, 8)
        code = octets[place] >> offset
        if offset + bits > 8:  # the value goes on in the next byte
            code |= octets[place + 1] << (8 - offset)
        values.append(code & (2**bits - 1))
    return torch.tensor(values, dtype=torch.uint8)


def get_field(word, offset, bits):
    """The `bits` bits of `word` that begin at bit `offset`, as a number from 0 to 2**bits - 1.

    Args:
        word: an int, or a tensor of any integer dtype and shape; the bits that are read are among its own.
        offset: how many bits of the word lie below the field.
        bits: width of the field.

    Returns:
        an int, or a tensor like `word`. get_field(177, 4, 2) is 3, for 177 is 0b10_11_00_01.
    """
    return (word >> offset) & (2**bits - 1)


def put_field(word, value, offset, bits):
    """`word` with the `bits` bits from bit `offset` on replaced by the low bits of `value`.

    Args:
        word: an int, or a tensor of any integer dtype and shape, which is left as it is.
        value: an int, or a tensor like `word`; only its low `bits` bits count.
        offset: how many bits of the word lie below the field.
        bits: width of the field.

    Returns:
        an int, or a tensor like `word`. put_field(177, 2, 4, 2) is 161, for that is 0b10_10_00_01.
    """
    mask = (2**bits - 1) << offset
    return (word & ~mask) | ((value << offset) & mask)


# ---------------------------------------------------------------- the layouts of other systems
#
# They all pack low bits first; they differ in the size of a word, in what runs along it, and in the order inside it.


def words_of(octets):
    """Bytes as words of 32 bits, the first byte in the lowest bits; zeros fill up the last word.

    Args:
        octets: uint8 tensor of shape (..., count).

    Returns:
        int32 tensor of shape (..., ceil(count / 4)), contiguous.
    """
    count = octets.shape[-1]
    words = torch.zeros((*octets.shape[:-1], (count + 3) // 4), dtype=torch.int32, device=octets.device)
    words.view(torch.uint8)[..., :count] = octets  # in memory, too, the lowest byte of a word is the first
    return words


def octets_of(words):
    """Words of 32 bits as bytes, the lowest bits first: the inverse of `words_of`, (..., count) to (..., 4 * count)."""
    in_order = torch.as_tensor(words, dtype=torch.int32).clone(memory_format=torch.contiguous_format)
    return in_order.view(torch.uint8)


def pack_words(codes, bits):
    """Pack each row as `pack` does, into words of 32 bits: the layout "pack-quantized" of compressed-tensors.

    A value goes on in the next word where 32 is no multiple of `bits`. Versions before 0.18 of compressed-tensors left
    the rest of a word unused instead, so at 3, 5, 6 and 7 bits they read other numbers.
    Source: compressed_tensors/compressors/pack_quantized/helpers.py, pack_to_int32.

    Args:
        codes: integers from 0 to 2**bits - 1, shape (..., count).
        bits: width of a value, 1 to 8.

    Returns:
        int32 tensor of shape (..., ceil(count * bits / 32)).
    """
    return words_of(pack(codes, bits))


def unpack_words(words, bits, count=None):
    """Read the rows that `pack_words` packed: int32 of shape (..., words) to uint8 of shape (..., count).

    Args:
        words, bits: as `pack_words` gives and takes them.
        count: values in a row; None for as many as the words hold whole.

    Raises:
        ValueError: a row holds fewer than `count` values.
    """
    return unpack(octets_of(words), bits, count)


def pack_gptq(codes, bits):
    """Pack a weight as GPTQ's checkpoints hold it (qweight): the words run along the inputs, in columns.

    Source: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, QuantLinear.pack.

    Args:
        codes: integers from 0 to 2**bits - 1, shape (outputs, inputs).
        bits: width of a value; the format knows 2, 3, 4 and 8.

    Returns:
        int32 tensor of shape (inputs * bits / 32, outputs).

    Raises:
        ValueError: the format does not know the width, or `inputs` is no multiple of 32.
    """
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"GPTQ packs 2, 3, 4 or 8 bits, not {bits}")
    if codes.shape[-1] % 32:
        raise ValueError(f"GPTQ packs 32 inputs at a time, and {codes.shape[-1]} is no multiple of 32")
    return pack_words(codes, bits).T.contiguous()


def unpack_gptq(qweight, bits, count=None):
    """Read what `pack_gptq` packed: int32 of shape (words, outputs) to uint8 of shape (outputs, inputs)."""
    return unpack_words(qweight.T, bits, count)


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight neighbouring outputs stands where in a word
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word each of the eight stands


def pack_awq(codes, bits=4):
    """Pack a weight as AWQ's checkpoints hold it (qweight, "gemm"): eight neighbouring outputs in a word, interleaved.

    The even outputs lie in the lower half of a word and the odd ones in the upper half, so that a GPU that masks every
    fourth nibble gets pairs of neighbours.
    Source: AutoAWQ, awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear.

    Args:
        codes: integers from 0 to 15, shape (outputs, inputs).
        bits: 4, the one width that the format knows.

    Returns:
        int32 tensor of shape (inputs, outputs / 8).

    Raises:
        ValueError: `bits` is not 4, or `outputs` is no multiple of 8.
    """
    if bits != 4:
        raise ValueError(f"AWQ packs 4 bits, not {bits}")
    if codes.shape[0] % 8:
        raise ValueError(f"AWQ packs 8 outputs at a time, and {codes.shape[0]} is no multiple of 8")
    eights = codes.T.unflatten(-1, (-1, 8))
    return pack_words(eights[..., AWQ_ORDER].flatten(-2), bits)


def unpack_awq(qweight, bits=4, count=None):
    """Read what `pack_awq` packed: int32 of shape (inputs, outputs / 8) to uint8 of shape (outputs, inputs)."""
    eights = unpack_words(qweight, bits).unflatten(-1, (-1, 8))
    return eights[..., AWQ_PLACES].flatten(-2).T[:, :count].contiguous()


class Layout(NamedTuple):
    """How a matrix of codes, (outputs, inputs) from 0 to 2**bits - 1, lies in memory.

    Fields:
        pack: function of (codes, bits).
        unpack: function of (packed, bits, count): its inverse, where `count` is `inputs`.
    """

    pack: Callable
    unpack: Callable


# From one layout to another: LAYOUTS["awq"].pack(LAYOUTS["gptq"].unpack(qweight, 4), 4).
LAYOUTS = {
    "low bits first": Layout(pack, unpack),
    "compressed-tensors": Layout(pack_words, unpack_words),
    "gptq": Layout(pack_gptq, unpack_gptq),
    "awq": Layout(pack_awq, unpack_awq),
}


# ---------------------------------------------------------------- the bits of a number


def from_twos_complement(codes, bits=8):
    """Read unsigned codes of `bits` bits as signed integers: the top bit counts -2**(bits - 1), the others as ever.

    It makes signed values of what `unpack` reads, where `pack` was given signed ones and kept their low bits.

    Args:
        codes: integers from 0 to 2**bits - 1, of any integer dtype and any shape.
        bits: width of a code, 2 to 8.

    Returns:
        int8 tensor of the shape of `codes`, values from -2**(bits - 1) to 2**(bits - 1) - 1.
    """
    codes = codes.to(torch.int16)
    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).to(torch.int8)


def float_fields(tensor):
    """The three fields of float32 numbers, as they are stored.

    A number is (-1)**sign * 2**(exponent - 127) * (1 + fraction / 2**23), save where the exponent is 0 (zero and the
    subnormals) or 255 (infinity and NaN): IEEE 754, section 3.4.

    Args:
        tensor: float32, any shape.

    Returns:
        (sign, exponent, fraction): int32 tensors of the shape of `tensor`; 0 or 1, 0 to 255, and 0 to 2**23 - 1.
    """
    bits = tensor.view(torch.int32)
    return (bits >> 31) & 1, (bits >> 23) & 255, bits & (2**23 - 1)


def field_widths(dtype):
    """How many bits of a dtype's numbers are (sign, exponent, fraction); an integer's digits count as fraction."""
    if dtype.is_floating_point:
        fraction = round(-math.log2(torch.finfo(dtype).eps))
        return 1, torch.finfo(dtype).bits - 1 - fraction, fraction
    sign = int(dtype.is_signed)
    return sign, 0, torch.iinfo(dtype).bits - sign


def bit_string(number):
    """The bits of a tensor of one number, as they are stored, the highest first: "10000001" for int8 -127."""
    octets = number.reshape(1).view(torch.uint8).tolist()  # the lowest byte is first in memory
    return "".join(f"{octet:08b}" for octet in reversed(octets))
