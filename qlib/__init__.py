"""qlib: a small library for quantizing neural networks, grown by the course's lessons.

from qlib import Scheme, quantize_tensor

qtensor = quantize_tensor(weight, Scheme(bits=4, group_size=64))
qtensor.dequantize(), qtensor.nbytes, qtensor.bits_per_weight
"""

from qlib.affine import choose_qparams, dequantize, quant_range, quantize
from qlib.checkpoint import load_quantized, save_quantized
from qlib.files import load_tensors, save_tensors
from qlib.linear import QEmbedding, QLinear
from qlib.model import quantize_model, replace_linear
from qlib.packing import pack, unpack
from qlib.scheme import FP8, INT2, INT4, INT8, MXFP4, NF4, NVFP4, Scheme
from qlib.streaming import quantize_checkpoint
from qlib.tensor import QTensor, fake_quantize, quantize_tensor

__version__ = "0.1.0"

__all__ = [
    "FP8",
    "INT2",
    "INT4",
    "INT8",
    "MXFP4",
    "NF4",
    "NVFP4",
    "QEmbedding",
    "QLinear",
    "QTensor",
    "Scheme",
    "choose_qparams",
    "dequantize",
    "fake_quantize",
    "load_quantized",
    "load_tensors",
    "pack",
    "quant_range",
    "quantize",
    "quantize_checkpoint",
    "quantize_model",
    "quantize_tensor",
    "replace_linear",
    "save_quantized",
    "save_tensors",
    "unpack",
]
