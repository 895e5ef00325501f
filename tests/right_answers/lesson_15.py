"""Right answers of lesson 15, written differently from the library's."""

import math

import torch


def loop_byte_by_byte(values, bits):
    per_byte = 8 // bits
    packed = torch.zeros(math.ceil(len(values) / per_byte), dtype=torch.uint8)
    for place in range(len(packed)):
        for i, value in enumerate(values[place * per_byte : (place + 1) * per_byte]):
            packed[place] |= (value & (2**bits - 1)).to(torch.uint8) << (bits * i)
    return packed


def loop_with_one_big_integer(values, bits):
    number = 0
    for value in reversed(values.tolist()):
        number = number * 2**bits + value % 2**bits
    octets = number.to_bytes((len(values) * bits + 7) // 8, "little")
    return torch.tensor(list(octets), dtype=torch.uint8)


def without_a_loop(values, bits):
    per_byte = 8 // bits
    filled = torch.zeros(-(-len(values) // per_byte) * per_byte, dtype=torch.int64)
    filled[: len(values)] = values & (2**bits - 1)
    return (filled.reshape(-1, per_byte) << (torch.arange(per_byte) * bits)).sum(1).to(torch.uint8)


def pack_bit_by_bit(values, bits):
    count = values.shape[-1]
    stream = (values[..., None].to(torch.int64) >> torch.arange(bits) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -count * bits % 8))
    return (stream.unflatten(-1, (-1, 8)) * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)


def pack_with_numpy(values, bits):
    import numpy as np

    single = (values.numpy().astype(np.int64)[..., None] >> np.arange(bits)) & 1
    stream = single.reshape(*values.shape[:-1], values.shape[-1] * bits).astype(np.uint8)
    return torch.from_numpy(np.packbits(stream, axis=-1, bitorder="little"))


def pack_with_a_value_for_each_byte(values, bits):
    # A byte takes bits from the values that overlap it: at most eight, and a few beyond the end are zeros.
    count = values.shape[-1]
    octets = (count * bits + 7) // 8
    codes = torch.cat([values.long() % 2**bits, torch.zeros(*values.shape[:-1], 9, dtype=torch.int64)], dim=-1)
    first = torch.arange(octets) * 8 // bits
    packed = torch.zeros(*values.shape[:-1], octets, dtype=torch.int64)
    for i in range(9):
        shift = (first + i) * bits - torch.arange(octets) * 8
        part = torch.where(shift >= 0, codes[..., (first + i).clamp(max=count)] << shift.clamp(0, 8), 0)
        part += torch.where(shift < 0, codes[..., (first + i).clamp(max=count)] >> (-shift).clamp(min=0), 0)
        packed |= part & 255
    return packed.to(torch.uint8)


ANSWERS = {
    "15.1": [loop_byte_by_byte, loop_with_one_big_integer, without_a_loop],
    "15.2": [pack_bit_by_bit, pack_with_numpy, pack_with_a_value_for_each_byte],
}
