"""Small integers side by side in bytes: the first value in the lowest bits, no bit left unused.

At 2 bits a byte holds four values, at 4 bits two; at 3 bits eight values fill three bytes. Eight values of b bits
are always b whole bytes, which is why `pack` and `unpack` work on eight at a time and need no case for any width.
Below them are functions that read the bits of a number: signed integers in two's complement, and floats.
"""

import math

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
