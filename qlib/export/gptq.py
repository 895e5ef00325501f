"""GPTQ: the tensors that a checkpoint of GPTQModel or AutoGPTQ keeps of a linear layer's weight."""

import torch

from qlib.export.shared import (
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


def pack_gptq(codes, bits):
    """Pack a weight as GPTQ's checkpoints hold it (qweight): the words run along the inputs, in columns.

    Source: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, QuantLinear.pack.

    Args:
        codes: integers from 0 to 2**bits - 1, shape (outputs, inputs).
        bits: width of a value; the format knows 2, 3, 4 and 8.

    Returns:
        int32 tensor of shape (inputs * bits / 32, outputs).

    Raises:
        ValueError: the format does not know the width, or `inputs` is no multiple of 32.
    """
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"GPTQ packs 2, 3, 4 or 8 bits, not {bits}")
    if codes.shape[-1] % 32:
        raise ValueError(f"GPTQ packs 32 inputs at a time, and {codes.shape[-1]} is no multiple of 32")
    return pack_words(codes, bits).T.contiguous()


def unpack_gptq(qweight, bits, count=None):
    """Read what `pack_gptq` packed: int32 of shape (words, outputs) to uint8 of shape (outputs, inputs)."""
    return unpack_words(qweight.T, bits, count)


def to_gptq(qtensor, checkpoint_format="gptq", name="the weight"):
    """The tensors that a GPTQ checkpoint keeps of a linear layer's weight.

    Args:
        qtensor: a QTensor (outputs, inputs) of 2, 3, 4 or 8 bits, both sizes multiples of 32; any granularity but per
            column.
        checkpoint_format: "gptq", whose zero points are stored less one, as AutoGPTQ had them from the start, or
            "gptq_v2", which stores them as they are. GPTQModel reads both and tells them apart by this word in
            quantize_config.json.
        name: what error messages call the weight.

    Returns:
        {"qweight": int32 (inputs * bits / 32, outputs), "qzeros": int32 (groups, outputs * bits / 32),
        "scales": float16 (groups, outputs), "g_idx": int32 (inputs,), the group of each input}.

    Raises:
        ValueError: the format has no place for the weight; the message gives `name` and says why.
    """
    check_grid(qtensor, "GPTQ", name)
    bits, (outputs, inputs) = qtensor.scheme.bits, qtensor.shape
    if bits not in (2, 3, 4, 8) or outputs % 32 or inputs % 32:
        raise refusal(
            name,
            "GPTQ",
            f"it packs 2, 3, 4 or 8 bits and sizes that are multiples of 32, not {bits} bits of {outputs} x {inputs}",
        )
    zeros = zero_codes(qtensor).to(torch.int16) - zero_offset(checkpoint_format)
    if (zeros < 0).any():
        raise refusal(name, "GPTQ", 'a zero point at the smallest integer cannot be stored less one; use "gptq_v2"')
    group_size = qtensor.scheme.group_size or inputs
    return {
        "qweight": pack_gptq(unpack(qtensor.packed, bits, inputs), bits),
        "qzeros": pack_words(zeros.T, bits),
        "scales": rounded_scale(scale_rows(qtensor), torch.float16, name).T.contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group_size,
    }


def from_gptq(tensors, scheme, checkpoint_format="gptq"):
    """A QTensor from what a GPTQ checkpoint keeps of a weight.

    Args:
        tensors: as `to_gptq` gives them.
        scheme: a Scheme; bits, group size and symmetry stand in quantize_config.json, where group size -1 is per row.
        checkpoint_format: see `to_gptq`.

    Raises:
        ValueError: a tensor is missing or has another shape than `scheme` asks for; or the inputs were taken in
            another order (desc_act), so that the groups are no runs of neighbours.
    """
    qweight, qzeros, scales, g_idx = (required(tensors, part) for part in ("qweight", "qzeros", "scales", "g_idx"))
    inputs, outputs = len(g_idx), qweight.shape[1]
    if not torch.equal(g_idx.long(), torch.arange(inputs) // (scheme.group_size or inputs)):
        raise ValueError(f"g_idx does not cut the inputs into runs, {scheme.granularity}: a QTensor cannot hold that")
    codes = unpack_gptq(qweight, scheme.bits, inputs)
    # One more than the largest code was 0 less one, wrapped around.
    zeros = (
        unpack_words(qzeros, scheme.bits, outputs).to(torch.int16) + zero_offset(checkpoint_format)
    ) % 2**scheme.bits
    return from_parts(pack(codes, scheme.bits), scales.T, zeros.T, scheme, codes.shape)


def zero_offset(checkpoint_format):
    """What a GPTQ checkpoint has taken off its zero points."""
    formats = {"gptq": 1, "gptq_v2": 0}
    if checkpoint_format not in formats:
        raise ValueError(f'checkpoint_format must be "gptq" or "gptq_v2", not {checkpoint_format!r}')
    return formats[checkpoint_format]
