"""Right answers of lesson 5, written differently from the library's."""

import torch


def symmetric_with_a_mask(absmax, bits=8):
    scale = absmax.double() / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    return scale.float(), torch.zeros((), dtype=torch.int8)


def symmetric_by_multiplying(absmax, bits=8):
    steps = float((1 << (bits - 1)) - 1)
    ones = torch.full_like(absmax, steps)
    return torch.where(absmax > 0, absmax, ones) * (1 / steps), torch.tensor(0).to(torch.int8)


def full_range_by_sign(low, high, bits=8):
    far = torch.maximum(low.abs(), high.abs())
    sign = torch.where(far == high, -1.0, 1.0)
    scale = sign * far / 2 ** (bits - 1)
    return torch.where(far == 0, torch.ones_like(far), scale), torch.tensor(0, dtype=torch.int8)


def full_range_by_gathering(low, high, bits=8):
    ends = torch.stack([low, high])
    farthest = ends.gather(0, ends.abs().argmax(0, keepdim=True)).squeeze(0)
    scale = -farthest / (1 << (bits - 1))
    return scale.masked_fill(scale == 0, 1.0), scale.new_zeros((), dtype=torch.int8)


ANSWERS = {
    "05.1": [symmetric_with_a_mask, symmetric_by_multiplying],
    "05.2": [full_range_by_sign, full_range_by_gathering],
}
