"""Right answers of lesson 17, written differently from the library's."""

import torch

from qlib import QTensor, Scheme, quant_range
from qlib.linear import integer_part


def mixed_matmul_of_two_products(x, qtensor, threshold):
    large = x.abs().max(dim=0).values >= threshold
    weight = qtensor.dequantize()
    in_float = (x * large) @ weight.T
    in_integers = integer_part(x * ~large, qtensor)
    return in_float + in_integers


def mixed_matmul_on_smaller_matrices(x, qtensor, threshold):
    outliers = [j for j in range(x.shape[1]) if x[:, j].abs().max() >= threshold]
    others = [j for j in range(x.shape[1]) if j not in outliers]
    part = QTensor(qtensor.values[:, others], qtensor.scale, qtensor.zero_point, Scheme(bits=8))
    result = x[:, outliers] @ qtensor.dequantize()[:, outliers].T
    return result + integer_part(x[:, others], part) if others else result


def mixed_matmul_token_by_token(x, qtensor, threshold):
    outlier = ~(x.abs() < threshold).all(dim=0)
    columns = qtensor.dequantize()[:, outlier]
    return torch.stack([integer_part((row * ~outlier)[None], qtensor)[0] + columns.mv(row[outlier]) for row in x])


def mixed_matmul_in_place_on_copies(x, qtensor, threshold):
    small, large = x.clone(), x.double()
    outlier = torch.linalg.vector_norm(x, ord=float("inf"), dim=0) >= threshold
    small[:, outlier], large[:, ~outlier] = 0, 0
    in_float = torch.einsum("ti,oi->to", large, qtensor.dequantize().double())
    return (in_float + integer_part(small, qtensor)).float()


def smoothing_scale_by_logarithms(weights, x, alpha=0.5):
    reach, size = x.abs().max(0).values, torch.cat(weights).abs().max(0).values
    scale = torch.exp(alpha * reach.log() - (1 - alpha) * size.log())
    scale[(reach == 0) | (size == 0)] = 1
    return scale


def smoothing_scale_channel_by_channel(weights, x, alpha=0.5):
    scales = []
    for channel in range(x.shape[1]):
        reach = x[:, channel].abs().max().item()
        size = max(weight[:, channel].abs().max().item() for weight in weights)
        scales.append(reach**alpha * size ** (alpha - 1) if reach and size else 1.0)
    return torch.tensor(scales)


def smoothing_scale_mends_infinities(weights, x, alpha=0.5):
    reach, size = torch.maximum(x.amax(0), -x.amin(0)).double(), torch.vstack(weights).double().abs().amax(0)
    scale = (reach / size) ** alpha * size ** (2 * alpha - 1)
    return scale.nan_to_num(1.0, posinf=1.0).masked_fill(reach * size == 0, 1.0).float()


def gptq_step_row_by_row(weight, factor_row, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    q = torch.clamp((weight[:, 0] / scale + zero_point).round(), qmin, qmax)
    error = (weight[:, 0] - scale * (q - zero_point)) / factor_row[0]
    rest = torch.stack([row[1:] - e * factor_row[1:] for row, e in zip(weight, error, strict=True)])
    return q.to(torch.int8), error, rest


def gptq_step_by_broadcasting(weight, factor_row, scale, zero_point, bits):
    first, others = weight[:, 0], weight[:, 1:]
    q = torch.round(first / scale + zero_point).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    lost = first - (q - zero_point) * scale
    return q.int(), lost / factor_row[0], others - lost[:, None] * (factor_row[1:] / factor_row[0])


def gptq_step_on_a_copy(weight, factor_row, scale, zero_point, bits):
    weight = weight.double()
    q = (weight[:, 0] / scale + zero_point).round_().clamp_(*quant_range(bits))
    error = (weight[:, 0] - (q - zero_point) * scale) / factor_row[0]
    weight -= error.unsqueeze(1) @ factor_row.double().unsqueeze(0)
    return q.long(), error.float(), weight[:, 1:].float()


def straight_through_by_where(gradient, weight, scale, zero_point, bits):
    qmin, qmax = quant_range(bits)
    integers = (weight / scale).add(zero_point).round()
    return torch.where(integers == integers.clamp(qmin, qmax), gradient, 0.0)


def straight_through_by_autograd(gradient, weight, scale, zero_point, bits):
    weight = weight.clone().requires_grad_(True)
    with torch.enable_grad():
        integers = weight / scale + zero_point
        rounded = integers + (integers.round() - integers).detach()
        back = (rounded.clamp(*quant_range(bits)) - zero_point) * scale
        back.backward(gradient)
    return weight.grad


def straight_through_between_real_ends(gradient, weight, scale, zero_point, bits):
    low, high = ((end - zero_point.float()) * scale for end in quant_range(bits))
    outside = (weight < low - scale / 2) | (weight > high + scale / 2)
    passed = gradient.clone()
    passed[outside] = 0
    return passed


ANSWERS = {
    "17.1": [
        mixed_matmul_of_two_products,
        mixed_matmul_on_smaller_matrices,
        mixed_matmul_token_by_token,
        mixed_matmul_in_place_on_copies,
    ],
    "17.2": [smoothing_scale_by_logarithms, smoothing_scale_channel_by_channel, smoothing_scale_mends_infinities],
    "17.3": [gptq_step_row_by_row, gptq_step_by_broadcasting, gptq_step_on_a_copy],
    "17.4": [straight_through_by_where, straight_through_by_autograd, straight_through_between_real_ends],
}
