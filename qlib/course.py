"""The names that the video course "Quantization in Depth" uses, as thin aliases of qlib's own functions.

A cell of the course's notebooks that imports from `helper` runs with `import qlib.course as helper`. Where the course's
formula is wrong, the name here does what is right: lessons 4 and 5 show the cases.
"""

import torch

from qlib import affine, linear, plot, report
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


def get_q_scale_symmetric(tensor, dtype=torch.int8):
    """qlib.choose_qparams in symmetric mode (lesson 5), as the course returns it: a float."""
    scale, _ = affine.choose_qparams(tensor, Scheme(bits_of(dtype), axis=None))
    return scale.item()


def linear_q_symmetric(tensor, dtype=torch.int8):
    """The whole symmetric quantizer (lesson 5): (quantized tensor, scale). The scale is one for `dtype`."""
    scale = get_q_scale_symmetric(tensor, dtype)
    return linear_q_with_scale_and_zero_point(tensor, scale, 0, dtype), scale


def linear_q_symmetric_per_channel(r_tensor, dim, dtype=torch.int8):
    """The symmetric quantizer with a scale per row (dim 0) or per column (dim 1): (quantized, scale) (lesson 7)."""
    scale, zero_point = affine.choose_qparams(r_tensor, Scheme(bits_of(dtype), axis=dim))
    return linear_q_with_scale_and_zero_point(r_tensor, scale, zero_point, dtype), scale


def linear_q_symmetric_per_group(tensor, group_size, dtype=torch.int8):
    """qlib.quantize per group in symmetric mode (lesson 8): (quantized tensor, scale).

    The scale has the course's shape, (rows * groups, 1): a group a row, those of the first row first. The course asks
    for columns that make whole groups; here the last group of a row may be shorter.
    """
    scheme = Scheme(bits_of(dtype), group_size=group_size)
    scale, zero_point = affine.choose_qparams(tensor, scheme)
    columns_scale = affine.expand_groups(scale, tensor, group_size)
    return affine.quantize(tensor, columns_scale, zero_point, scheme.bits), scale.reshape(-1, 1)


def linear_dequantization_per_group(quantized_tensor, scale, group_size):
    """qlib.dequantize per group (lesson 8), with a scale of shape (rows * groups, 1)."""
    scale = scale.reshape(*quantized_tensor.shape[:-1], -1)
    return affine.dequantize(quantized_tensor, affine.expand_groups(scale, quantized_tensor, group_size), 0)


def quantized_linear_W8A32_without_bias(input, q_w, s_w, z_w):
    """qlib.linear.linear_w8a32 (lesson 9). The weight is s_w * (q_w - z_w); the course writes q_w * s_w + z_w."""
    return linear.linear_w8a32(input, q_w, s_w, z_w)


def quantization_error(tensor, dequantized_tensor):
    """qlib.report.quantization_error: the mean squared error, as a tensor like the course's."""
    return torch.tensor(report.quantization_error(tensor, dequantized_tensor))


def plot_quantization_errors(original_tensor, quantized_tensor, dequantized_tensor, dtype=torch.int8, n_bits=8):
    """qlib.plot.heatmaps; shown at once, as the course's is. `dtype` and `n_bits` are taken for its calls' sake."""
    from IPython.display import display

    display(plot.heatmaps(original_tensor, quantized_tensor, dequantized_tensor))
