"""Right answers of lesson 2, written differently from the library's."""

import numpy as np
import torch


def twos_complement_by_shifting(codes, bits=8):
    unused = 32 - bits
    return ((codes.to(torch.int32) << unused) >> unused).to(torch.int8)


def twos_complement_by_weighing_the_top_bit(codes, bits=8):
    codes = codes.long()
    top = (codes >> (bits - 1)) & 1
    return (codes - top * 2**bits).to(torch.int8)


def twos_complement_by_flipping_the_top_bit(codes, bits=8):
    top = 1 << (bits - 1)
    return ((codes.int() ^ top) - top).char()


def twos_complement_by_wrapping_around(codes, bits=8):
    codes = codes.to(torch.uint8)
    return torch.where(codes < 2 ** (bits - 1), codes, codes - 2**bits).to(torch.int8)


def fields_from_wide_integers(tensor):
    bits = tensor.view(torch.int32).to(torch.int64) % 2**32
    return bits // 2**31, bits // 2**23 % 2**8, bits % 2**23


def fields_from_numpy(tensor):
    bits = tensor.numpy().view(np.uint32)
    parts = (bits >> 31, (bits << 1) >> 24, bits & 0x7FFFFF)
    return tuple(torch.from_numpy(part.astype(np.int64)) for part in parts)


def fields_with_signbit(tensor):
    bits = tensor.view(torch.int32)
    return torch.signbit(tensor).to(torch.uint8), bits.bitwise_right_shift(23).bitwise_and(0xFF), bits & 0x007FFFFF


def fields_from_bytes(tensor):
    octets = tensor.contiguous().view(torch.uint8).reshape(*tensor.shape, 4).int()
    low, middle, high, top = octets.unbind(-1)
    return top >> 7, ((top & 127) << 1) | (high >> 7), low | (middle << 8) | ((high & 127) << 16)


ANSWERS = {
    "02.1": [
        tuple((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (16, 32, 64)),
        torch.tensor([[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (16, 32, 64)]),
        np.array([(np.iinfo(kind).min, np.iinfo(kind).max) for kind in ("int16", "int32", "int64")]),
        [[-32768, 32767], [-2147483648, 2147483647], [-9223372036854775808, 9223372036854775807]],
    ],
    "02.2": [
        twos_complement_by_shifting,
        twos_complement_by_weighing_the_top_bit,
        twos_complement_by_flipping_the_top_bit,
        twos_complement_by_wrapping_around,
    ],
    "02.3": [fields_from_wide_integers, fields_from_numpy, fields_with_signbit, fields_from_bytes],
}
