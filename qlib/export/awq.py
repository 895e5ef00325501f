"""AWQ: the tensors that an AWQ checkpoint ("gemm") keeps of a linear layer's weight."""

import torch

from qlib.export.shared import (
    check_full_groups,
    check_grid,
    from_parts,
    pack_words,
    refusal,
    required,
    rounded_scale,
    scale_rows,
    unpack_words,
    zero_codes,
)
from qlib.packing import pack, unpack

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight neighbouring outputs stands where in a word
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word each of the eight stands


def pack_awq(codes, bits=4):
    """Pack a weight as AWQ's checkpoints hold it (qweight, "gemm"): eight neighbouring outputs in a word, interleaved.

    The even outputs lie in the lower half of a word and the odd ones in the upper half, so that a GPU that masks every
    fourth nibble gets pairs of neighbours.
    Source: AutoAWQ, awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear.

    Args:
        codes: integers from 0 to 15, shape (outputs, inputs).
        bits: 4, the one width that the format knows.

    Returns:
        int32 tensor of shape (inputs, outputs / 8).

    Raises:
        ValueError: `bits` is not 4, or `outputs` is no multiple of 8.
    """
    if bits != 4:
        raise ValueError(f"AWQ packs 4 bits, not {bits}")
    if codes.shape[0] % 8:
        raise ValueError(f"AWQ packs 8 outputs at a time, and {codes.shape[0]} is no multiple of 8")
    eights = codes.T.unflatten(-1, (-1, 8))
    return pack_words(eights[..., AWQ_ORDER].flatten(-2), bits)


def unpack_awq(qweight, bits=4, count=None):
    """Read what `pack_awq` packed: int32 of shape (inputs, outputs / 8) to uint8 of shape (outputs, inputs)."""
    eights = unpack_words(qweight, bits).unflatten(-1, (-1, 8))
    return eights[..., AWQ_PLACES].flatten(-2).T[:, :count].contiguous()


def to_awq(qtensor, name="the weight"):
    """The tensors that an AWQ checkpoint ("gemm") keeps of a linear layer's weight.

    Args:
        qtensor: a QTensor (outputs, inputs) of 4 bits, `outputs` a multiple of 8; per tensor, per row, or in groups
            that fill the rows.
        name: what error messages call it.

    Returns:
        {"qweight": int32 (inputs, outputs / 8), "qzeros": int32 (groups, outputs / 8), "scales": float16
        (groups, outputs)}. Symmetric mode has zero points too, all at code 8.

    Raises:
        ValueError: the format has no place for the weight; the message gives `name` and says why.
    """
    check_grid(qtensor, "AWQ", name)
    check_full_groups(qtensor, "AWQ", name)
    bits, (outputs, inputs) = qtensor.scheme.bits, qtensor.shape
    if bits != 4 or outputs % 8:
        raise refusal(name, "AWQ", f"it packs 4 bits and eight outputs at a time, not {bits} bits of {outputs} outputs")
    return {
        "qweight": pack_awq(unpack(qtensor.packed, bits, inputs)),
        "qzeros": pack_awq(zero_codes(qtensor)),
        "scales": rounded_scale(scale_rows(qtensor), torch.float16, name).T.contiguous(),
    }


def from_awq(tensors, scheme):
    """A QTensor from what an AWQ checkpoint keeps of a weight.

    Args:
        tensors: as `to_awq` gives them.
        scheme: a Scheme of 4 bits; its group size stands in config.json.

    Raises:
        ValueError: a tensor is missing, or has not the shape that `scheme` asks for.
    """
    qweight, qzeros, scales = (required(tensors, part) for part in ("qweight", "qzeros", "scales"))
    codes = unpack_awq(qweight, scheme.bits)
    return from_parts(pack(codes, scheme.bits), scales.T, unpack_awq(qzeros, scheme.bits), scheme, codes.shape)
