"""Observers: they watch the numbers that flow into a layer and say which range its integers should cover.

Each has `observe(tensor)`, which is called with one batch after the other, and `range()`, which gives (low, high) for
qlib.affine.asymmetric_qparams. Nagel et al. 2021 (arXiv:2106.08295), section 3.1, compares such choices.
"""

import contextlib
import functools

import torch

from qlib.affine import asymmetric_qparams, dequantize, quantize
from qlib.linear import is_float


class MinMax:
    """From the smallest to the largest number ever seen: nothing is clipped, and one outlier widens it for good."""

    def __init__(self):
        self.low = self.high = None

    def observe(self, tensor):
        low, high = tensor.amin(), tensor.amax()
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self):
        return self.low, self.high


class MovingAverage:
    """The ends of each batch, averaged over the batches with a memory that fades: one odd batch moves it a little.

    Args:
        momentum: the share of the newest batch, from 0 to 1.
    """

    def __init__(self, momentum=0.1):
        self.momentum = momentum
        self.low = self.high = None

    def observe(self, tensor):
        low, high = tensor.amin(), tensor.amax()
        if self.low is None:
            self.low, self.high = low, high
        self.low = (1 - self.momentum) * self.low + self.momentum * low
        self.high = (1 - self.momentum) * self.high + self.momentum * high

    def range(self):
        return self.low, self.high


class Percentile:
    """The range that leaves out a small share of the numbers at either end. It keeps all it sees: give it a sample.

    Args:
        percent: where the upper end lies, from 50 to 100; the lower end lies at 100 - percent.
    """

    def __init__(self, percent=99.9):
        self.percent = percent
        self.seen = []

    def observe(self, tensor):
        self.seen.append(tensor.flatten())

    def range(self):
        return percentile_range(torch.cat(self.seen), self.percent)


class MSE:
    """The range with the smallest mean squared error after a trip through the integers. It keeps all it sees.

    Tried are the range from the smallest to the largest number, and that range shrunk towards 0 in a hundred steps.

    Args:
        bits: width of the integers; the fewer, the more it pays to clip.
    """

    def __init__(self, bits=8):
        self.bits = bits
        self.seen = []

    def observe(self, tensor):
        self.seen.append(tensor.flatten())

    def range(self):
        values = torch.cat(self.seen)
        low, high = values.amin(), values.amax()
        ranges = [(low * step / 100, high * step / 100) for step in range(1, 101)]
        return min(ranges, key=lambda ends: range_error(values, *ends, self.bits))


def percentile_range(values, percent):
    """The percentiles 100 - `percent` and `percent` of a vector, between two of its numbers where they fall there."""
    return torch.quantile(values, 1 - percent / 100), torch.quantile(values, percent / 100)


def range_error(values, low, high, bits=8):
    """The mean squared error of `values` when the integers of `bits` bits cover low to high, rounding and clipping."""
    scale, zero_point = asymmetric_qparams(low, high, bits)
    back = dequantize(quantize(values, scale, zero_point, bits), scale, zero_point)
    return (back - values).square().mean().item()


@contextlib.contextmanager
def calibrate(model, observer=MinMax):
    """Watch the inputs of a model's linear and convolutional layers while the `with` block runs the model.

        with calibrate(model) as observers:
            for batch in batches:
                model(batch)
        low, high = observers["linear"].range()

    Args:
        model: a torch.nn.Module in evaluation mode.
        observer: makes an observer: a class of this module, or such as functools.partial(Percentile, percent=99).

    Yields:
        {name of a layer: its observer}; a layer appears when its first input does.

    Raises:
        ValueError: an input holds a NaN or an infinity; the message names the layer.
    """
    observers, hooks = {}, []
    try:
        for name, layer in model.named_modules():
            if is_float(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                watch = functools.partial(observe_input, observers, name, observer)
                hooks.append(layer.register_forward_pre_hook(watch))
        yield observers
    finally:
        # However the block ended, the model must come out of it as it went in.
        for hook in hooks:
            hook.remove()


def observe_input(observers, name, observer, layer, inputs):
    """The hook of `calibrate`: shows a layer's first input to the layer's observer, making one if there is none."""
    x = inputs[0].detach()
    if not torch.isfinite(x).all():
        raise ValueError(f"the input of layer {name!r} holds a NaN or an infinity; its range cannot be calibrated")
    if name not in observers:
        observers[name] = observer()
    observers[name].observe(x)
