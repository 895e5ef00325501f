"""Right answers of lesson 16, written differently from the library's."""

import torch


def unpack_bit_by_bit(packed, bits, count=None):
    stream = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)
    whole = stream.shape[-1] // bits
    values = stream[..., : whole * bits].unflatten(-1, (whole, bits)).long() * 2 ** torch.arange(bits)
    return values.sum(-1).to(torch.uint8)[..., : whole if count is None else count]


def unpack_with_numpy(packed, bits, count=None):
    import numpy as np

    count = packed.shape[-1] * 8 // bits if count is None else count
    stream = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")[..., : count * bits]
    values = stream.reshape(*packed.shape[:-1], count, bits).astype(np.int64) @ (1 << np.arange(bits))
    return torch.from_numpy(values.astype(np.uint8))


def unpack_two_bytes_at_a_time(packed, bits, count=None):
    count = packed.shape[-1] * 8 // bits if count is None else count
    begins = torch.arange(count) * bits
    padded = torch.cat([packed, torch.zeros_like(packed[..., :1])], dim=-1).int()
    pairs = padded[..., begins // 8] + 256 * padded[..., begins // 8 + 1]
    return (pairs // 2 ** (begins % 8) % 2**bits).to(torch.uint8)


def unpack_codes(packed, bits, count):
    return unpack_two_bytes_at_a_time(packed, bits, count)


def group_by_group(x, packed, scale, zero_point, bits, group_size, bias=None):
    inputs = x.shape[-1]
    q = unpack_codes(packed, bits, inputs).float() - 2 ** (bits - 1)
    y = 0
    for g, first in enumerate(range(0, inputs, group_size)):
        part = q[:, first : first + group_size] - zero_point[:, g : g + 1].float()
        y = y + x[..., first : first + group_size].float() @ part.T * scale[:, g]
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def by_index(x, packed, scale, zero_point, bits, group_size, bias=None):
    group = torch.arange(x.shape[-1]) // group_size
    codes = unpack_codes(packed, bits, x.shape[-1])
    weight = (codes - (zero_point.float() + 2 ** (bits - 1))[:, group]) * scale[:, group]
    y = x @ weight.T.to(x.dtype)
    return y if bias is None else y + bias


ANSWERS = {
    "16.1": [unpack_bit_by_bit, unpack_with_numpy, unpack_two_bytes_at_a_time],
    "16.2": [group_by_group, by_index],
}
