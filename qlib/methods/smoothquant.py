"""SmoothQuant: make activations easy to quantize by moving their outliers into the weights.

Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(arXiv:2211.10438), section 4.
"""

import functools
import math

import torch

from qlib.methods.llm_int8 import llm_int8_model
from qlib.methods.rescale import rescale_model
from qlib.scheme import INT8


def smoothquant_model(model, calibration, scheme=INT8, alpha=0.5, ignore=("lm_head",), divide=False, per_token=True):
    """Smooth a model, then quantize the weights and the activations of its linear layers (W8A8), in place.

    The activations' scales are found as they come, one for each token or one for all: O1 and O2 of the paper's Table 2.

    Args:
        model, calibration, alpha, divide: as for `smooth`.
        scheme, ignore, per_token: as for `llm_int8_model`, by which the layers are quantized, no outlier set apart.

    Returns:
        a Report.
    """
    smooth(model, calibration, alpha, ignore, divide)
    return llm_int8_model(model, scheme, threshold=math.inf, ignore=ignore, per_token=per_token)


def smooth(model, calibration, alpha=0.5, ignore=("lm_head",), divide=False):
    """Move part of the range of a model's activations into its weights, in place. What it computes stays the same.

    Args:
        model: a torch.nn.Module in evaluation mode.
        calibration: one batch that the model takes.
        alpha: how much of the difficulty moves to the weights, from 0 (all their own) to 1 (all of it).
        ignore, divide: as for `qlib.methods.rescale_model`.

    Returns:
        {SharedInput: scale}, None for the layers that were left.
    """
    return rescale_model(model, calibration, functools.partial(smoothing_scale, alpha=alpha), divide, ignore)


def smoothing_scale(weights, x, alpha=0.5):
    """The scale of each input channel by equation 4: max|X|^alpha / max|W|^(1 - alpha).

    Args:
        weights: list of (rows, columns), all that read the input.
        x: (tokens, columns), the input on calibration data.
        alpha: from 0 to 1.

    Returns:
        float32 (columns,); 1 for a channel that is always 0, or that no weight reads.
    """
    x_max = x.float().abs().amax(0)
    w_max = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    scale = x_max**alpha / w_max ** (1 - alpha)
    return torch.where((x_max > 0) & (w_max > 0), scale, 1.0)
