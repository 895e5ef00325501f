"""LLM.int8(): multiply 8-bit integers, except in the few columns of the input that hold outliers.

Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (arXiv:2208.07339), section 3.
The arithmetic is qlib.linear's `mixed_matmul`.
"""

import math

from qlib.linear import QLinear
from qlib.model import quantize_model
from qlib.scheme import INT8


def llm_int8_model(model, scheme=INT8, threshold=6.0, ignore=("lm_head",), per_token=True):
    """Quantize a model's linear layers for LLM.int8(), in place; what is a QLinear already gets int8 activations too.

    Args:
        model, scheme, ignore: as for `qlib.quantize_model`; the scheme without a scale per column.
        threshold: magnitude from which on a value of the input is an outlier; math.inf for plain W8A8.
        per_token: whether each token has a scale of its own, or one scale serves a layer's whole input.

    Returns:
        a Report.

    Raises:
        ValueError: the scheme has a scale per column, or a QLinear of the model has.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QLinear)]
    if any(checked.axis == 1 for checked in (scheme, *(layer.scheme for layer in layers))):
        raise ValueError("an integer sum needs one scale for all the inputs of a row, not one per column")
    report = quantize_model(model, scheme, ignore, activation_bits=8)
    for layer in (layer for layer in model.modules() if isinstance(layer, QLinear)):
        layer.set_activations(8, None if threshold == math.inf else threshold, per_token)
    return report
