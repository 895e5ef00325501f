"""Quantized weights for other systems: tensors in their layouts, and whole models that they can serve; a file a format.

None of the other systems' packages is needed to write for it.
"""

from collections.abc import Callable
from typing import NamedTuple

from qlib.export.awq import from_awq, pack_awq, to_awq, unpack_awq
from qlib.export.compressed_tensors import export_compressed_tensors, from_compressed_tensors, to_compressed_tensors
from qlib.export.gptq import from_gptq, pack_gptq, to_gptq, unpack_gptq
from qlib.export.shared import pack_words, unpack_words
from qlib.packing import pack, unpack

__all__ = [
    "LAYOUTS",
    "Layout",
    "export_compressed_tensors",
    "from_awq",
    "from_compressed_tensors",
    "from_gptq",
    "to_awq",
    "to_compressed_tensors",
    "to_gptq",
]


class Layout(NamedTuple):
    """How a matrix of codes, (outputs, inputs) from 0 to 2**bits - 1, lies in memory.

    Fields:
        pack: function of (codes, bits).
        unpack: function of (packed, bits, count): its inverse, where `count` is `inputs`.
    """

    pack: Callable
    unpack: Callable


# From one layout to another: LAYOUTS["awq"].pack(LAYOUTS["gptq"].unpack(qweight, 4), 4).
LAYOUTS = {
    "low bits first": Layout(pack, unpack),
    "compressed-tensors": Layout(pack_words, unpack_words),
    "gptq": Layout(pack_gptq, unpack_gptq),
    "awq": Layout(pack_awq, unpack_awq),
}
