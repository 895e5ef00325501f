"""Right answers of lesson 10, written differently from the library's."""

import torch

from qlib import INT8, QLinear, Scheme, choose_qparams, quantize


def w8_a16_forward_by_matmul(weight, input, scales, bias=None):
    output = torch.matmul(input, weight.to(input.dtype).T).float()
    output *= scales
    if bias is not None:
        output += bias.float()
    return output.to(input.dtype)


def w8_a16_forward_scales_the_weight_first(weight, input, scales, bias=None):
    real = (weight.float() * scales[:, None]).to(input.dtype)
    return torch.nn.functional.linear(input, real, bias if bias is None else bias.to(input.dtype))


def w8_a16_forward_by_einsum(weight, input, scales, bias=None):
    output = torch.einsum("...i,oi,o->...o", input.float(), weight.float(), scales)
    if bias is None:
        bias = torch.zeros(len(scales))
    return (output + bias).to(input)


class W8A16LinearLayerByHand(torch.nn.Module):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__()
        size = (out_features, in_features)
        self.register_buffer("int8_weights", torch.randint(-127, 128, size, dtype=torch.int8))
        self.register_buffer("scales", torch.rand(out_features))
        if bias:
            self.register_buffer("bias", torch.randn(out_features, dtype=dtype))
        else:
            self.bias = None

    @torch.no_grad()
    def quantize(self, weights):
        weights = weights.to(torch.float32)
        absmax = weights.abs().max(dim=1).values
        self.scales = torch.where(absmax > 0, absmax / 127, torch.ones_like(absmax))
        self.int8_weights = (weights / self.scales[:, None]).round().to(torch.int8)

    def forward(self, x):
        return w8_a16_forward_by_matmul(self.int8_weights, x, self.scales, self.bias)


class W8A16LinearLayerInPlace(torch.nn.Module):
    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        torch.nn.Module.__init__(self)
        self.register_buffer("int8_weights", torch.empty((out_features, in_features), dtype=torch.int8))
        self.register_buffer("scales", torch.empty(out_features))
        self.register_buffer("bias", None)
        if bias:
            self.bias = torch.zeros(out_features, dtype=dtype)

    def quantize(self, weights):
        with torch.no_grad():
            scale, _ = choose_qparams(weights, Scheme(bits=8, axis=0))
            self.scales.copy_(scale[:, 0])
            self.int8_weights.copy_(quantize(weights, scale, 0))

    def forward(self, x):
        return w8_a16_forward_scales_the_weight_first(self.int8_weights, x, self.scales, self.bias)


class W8A16LinearLayerFromQLinear(W8A16LinearLayerByHand):
    def quantize(self, weights):
        linear = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
        linear.weight = torch.nn.Parameter(weights.detach())
        qtensor = QLinear.from_linear(linear, INT8).qtensor
        self.int8_weights, self.scales = qtensor.values, qtensor.scale.flatten()


ANSWERS = {
    "10.1": [w8_a16_forward_by_matmul, w8_a16_forward_scales_the_weight_first, w8_a16_forward_by_einsum],
    "10.2": [W8A16LinearLayerByHand, W8A16LinearLayerInPlace, W8A16LinearLayerFromQLinear],
}
