"""The names that the video course "Quantization in Depth" uses, as thin aliases of qlib's own functions.

A cell of the course's notebooks that imports from `helper` runs with `import qlib.course as helper`. Where the course's
formula is wrong, the name here does what is right: lesson 4 shows the two cases.
"""

import torch

from qlib import affine, plot, report
from qlib.scheme import Scheme


def bits_of(dtype):
    """Bits of a signed integer dtype that the course quantizes to; ValueError for any but torch.int8."""
    if dtype is not torch.int8:
        raise ValueError(f"the course quantizes to torch.int8, not {dtype}; use a Scheme for other widths")
    return 8


def linear_q_with_scale_and_zero_point(tensor, scale, zero_point, dtype=torch.int8):
    """qlib.quantize (lesson 3)."""
    return affine.quantize(tensor, scale, zero_point, bits_of(dtype))


def linear_dequantization(quantized_tensor, scale, zero_point):
    """qlib.dequantize (lesson 3)."""
    return affine.dequantize(quantized_tensor, scale, zero_point)


def get_q_scale_and_zero_point(tensor, dtype=torch.int8):
    """qlib.choose_qparams in asymmetric mode (lesson 4), as the course returns it: a float and an int."""
    scale, zero_point = affine.choose_qparams(tensor, Scheme(bits_of(dtype), symmetric=False, axis=None))
    return scale.item(), zero_point.item()


def linear_quantization(tensor, dtype=torch.int8):
    """The whole asymmetric quantizer (lesson 4): (quantized tensor, scale, zero point)."""
    scale, zero_point = get_q_scale_and_zero_point(tensor, dtype)
    return linear_q_with_scale_and_zero_point(tensor, scale, zero_point, dtype), scale, zero_point


def quantization_error(tensor, dequantized_tensor):
    """qlib.report.quantization_error: the mean squared error, as a tensor like the course's."""
    return torch.tensor(report.quantization_error(tensor, dequantized_tensor))


def plot_quantization_errors(original_tensor, quantized_tensor, dequantized_tensor, dtype=torch.int8, n_bits=8):
    """qlib.plot.heatmaps; shown at once, as the course's is. `dtype` and `n_bits` are taken for its calls' sake."""
    from IPython.display import display

    display(plot.heatmaps(original_tensor, quantized_tensor, dequantized_tensor))
