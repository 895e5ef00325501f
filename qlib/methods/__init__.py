"""Beyond rounding: methods that take the same Scheme and leave a model with the same QLinear layers.

Each has one function for a matrix, which makes a QTensor or what it is made of, and one for a model, which changes it
in place as `qlib.quantize_model` does. Calibration data is one batch that the model takes.
"""

from qlib.methods.awq import awq_model, awq_rescale, awq_scale
from qlib.methods.calibration import channel_magnitudes, hessian, output_errors
from qlib.methods.gptq import gptq_model, gptq_quantize, gptq_step
from qlib.methods.hqq import half_quadratic_zero_points, hqq_model, hqq_quantize
from qlib.methods.llm_int8 import llm_int8_model
from qlib.methods.qat import FakeQuantize, StraightThrough, convert_qat, prepare_qat, straight_through
from qlib.methods.rescale import DividedInput, SharedInput, emulate_outliers, rescale_model, shared_inputs
from qlib.methods.smoothquant import smooth, smoothing_scale, smoothquant_model
from qlib.methods.static import IntegerConv2d, IntegerLinear, fuse_batch_norms, fuse_conv_bn, integer_net, requantize

__all__ = [
    "DividedInput",
    "FakeQuantize",
    "IntegerConv2d",
    "IntegerLinear",
    "SharedInput",
    "StraightThrough",
    "awq_model",
    "awq_rescale",
    "awq_scale",
    "channel_magnitudes",
    "convert_qat",
    "emulate_outliers",
    "fuse_batch_norms",
    "fuse_conv_bn",
    "gptq_model",
    "gptq_quantize",
    "gptq_step",
    "half_quadratic_zero_points",
    "hessian",
    "hqq_model",
    "hqq_quantize",
    "integer_net",
    "llm_int8_model",
    "output_errors",
    "prepare_qat",
    "requantize",
    "rescale_model",
    "shared_inputs",
    "smooth",
    "smoothing_scale",
    "smoothquant_model",
    "straight_through",
]
