"""Right answers of lesson 3, written differently from the library's."""

import torch


def quantize_rounds_before_the_shift(tensor, scale, zero_point, bits=8):
    steps = torch.round(tensor / scale) + zero_point
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return torch.clamp(steps, low, high).type(torch.int8)


def quantize_with_where(tensor, scale, zero_point, bits=8):
    q = (tensor.double() * (1 / scale)).add(zero_point).round()
    half = 2 ** (bits - 1)
    q = torch.where(q > half - 1, torch.tensor(half - 1.0), q)
    q = torch.where(q < -half, torch.tensor(-float(half)), q)
    return q.to(torch.int64).to(torch.int8)


def dequantize_distributes(values, scale, zero_point):
    return (values.to(torch.float64) * scale - zero_point * scale).to(torch.float32)


def dequantize_in_int32(values, scale, zero_point):
    return (values.to(torch.int32) - zero_point).to(torch.float32).mul(scale)


ANSWERS = {
    "03.1": [quantize_rounds_before_the_shift, quantize_with_where],
    "03.2": [dequantize_distributes, dequantize_in_int32],
}
