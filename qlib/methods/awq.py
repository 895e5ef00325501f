"""AWQ: before rounding, make the weights larger that meet large activations, so that they lose less.

Lin et al. 2024, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv:2306.00978),
section 3.2. The clipping that the paper adds to the search is left out.
"""

import functools

import torch

from qlib.methods.calibration import hessian, output_errors
from qlib.methods.rescale import rescale_model
from qlib.model import quantize_model
from qlib.tensor import fake_quantize

STEPS = 20  # of the grid on which the exponent is searched, as in the paper


def awq_model(model, scheme, calibration, ignore=("lm_head",)):
    """Rescale a model by what its activations say, then round it, in place.

    Layers are left unscaled where nothing before them can take the division: `awq_rescale` says which.

    Args:
        model, scheme, ignore: as for `qlib.quantize_model`.
        calibration: one batch that the model takes: token ids of shape (windows, tokens), or {name: tensor}.

    Returns:
        a Report; its SQNR is that of the rescaled weights.
    """
    awq_rescale(model, scheme, calibration, ignore)
    return quantize_model(model, scheme, ignore)


def awq_rescale(model, scheme, calibration, ignore=("lm_head",), divide=False):
    """Rescale a model for a scheme, in place, and leave it in floats: it computes what it did, and is to be quantized.

    Args:
        model, scheme, calibration, ignore: as for `awq_model`.
        divide: as for `qlib.methods.rescale_model`.

    Returns:
        {SharedInput: scale}, None for the layers that were left.
    """
    return rescale_model(model, calibration, functools.partial(awq_scale, scheme=scheme), divide, ignore)


def awq_scale(weights, x, scheme):
    """The scale of each input channel: its mean magnitude to the power that makes the error smallest (equation 5).

    The power 0, which is rounding, is among those tried: on the calibration data the sum of the errors is never larger.

    Args:
        weights: list of (rows, columns), all that read the input.
        x: (tokens, columns), the input on calibration data.
        scheme: a Scheme.

    Returns:
        float32 (columns,).
    """
    cost = hessian(x)
    scales = [power_scale(x, step / STEPS) for step in range(STEPS + 1)]
    return min(scales, key=lambda scale: scaled_error(weights, scale, cost, scheme))


def power_scale(x, alpha):
    """The mean magnitude of each channel to the power alpha, centred on 1; 1 for a channel that is always 0."""
    magnitude = x.float().abs().mean(0)
    live = magnitude > 0
    scale = torch.where(live, magnitude, 1.0) ** alpha
    if live.any():
        scale = scale / (scale[live].max() * scale[live].min()).sqrt()
    return torch.where(live, scale, 1.0)


def scaled_error(weights, scale, cost, scheme):
    """The error on the outputs when weights are scaled, rounded and scaled back (equation 4); `cost`: `hessian(x)`."""
    backs = [fake_quantize(weight.float() * scale, scheme) / scale for weight in weights]
    return sum(output_errors(weight, back, cost).sum().item() for weight, back in zip(weights, backs, strict=True))
