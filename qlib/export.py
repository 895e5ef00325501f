"""Quantized weights for other systems: tensors in their layouts, and whole models that vLLM can serve.

`to_…` and `from_…` take a QTensor to the tensors that compressed-tensors, GPTQ and AWQ keep of a layer, and back;
`export_compressed_tensors` writes a whole model. None of the packages is needed for it. What they all share: a code
counts up from the smallest integer, so that the integer -8 is the code 0 at 4 bits; packing.py has the layouts.
"""

import copy

import torch

from qlib.affine import quant_range
from qlib.checkpoint import QUANTIZED
from qlib.files import CONFIG, folder_in_one_piece, read_json, write_json
from qlib.linear import QLinear, is_conv1d
from qlib.packing import (
    octets_of,
    pack,
    pack_awq,
    pack_gptq,
    pack_words,
    unpack,
    unpack_awq,
    unpack_gptq,
    unpack_words,
    words_of,
)
from qlib.tensor import QTensor

COMPRESSED_TENSORS_FORMAT = "pack-quantized"

# ---------------------------------------------------------------- one weight


def to_compressed_tensors(qtensor, name="the weight"):
    """The tensors that compressed-tensors' "pack-quantized" keeps of a linear layer's weight.

    The scales stay float32. compressed-tensors and vLLM turn them into the model's dtype when they load them.

    Args:
        qtensor: a QTensor (outputs, inputs), 2 to 8 bits, per tensor, per row, or in groups that fill the rows.
        name: what error messages call it.

    Returns:
        {"weight_packed": int32 (outputs, words), "weight_scale": float32 (outputs, groups), "weight_shape": int64 (2,)}
        and, in asymmetric mode, "weight_zero_point": int32 (words, groups), packed along the outputs.

    Raises:
        ValueError: the format has no place for this granularity; the message gives `name`.
    """
    check_grid(qtensor, "compressed-tensors", name)
    check_full_groups(qtensor, "compressed-tensors", name)
    tensors = {
        "weight_packed": words_of(qtensor.packed),
        "weight_scale": scale_rows(qtensor).float().contiguous(),
        "weight_shape": torch.tensor(qtensor.shape),
    }
    if not qtensor.scheme.symmetric:
        tensors["weight_zero_point"] = pack_words(zero_codes(qtensor).T, qtensor.scheme.bits).T.contiguous()
    return tensors


def from_compressed_tensors(tensors, scheme):
    """A QTensor from what compressed-tensors keeps of a weight.

    Args:
        tensors: as `to_compressed_tensors` gives them.
        scheme: a Scheme; it stands in config.json.

    Raises:
        ValueError: a tensor is missing, or has not the shape that `scheme` asks for.
    """
    packed, scale, shape = (part_of(tensors, f"weight_{part}") for part in ("packed", "scale", "shape"))
    outputs, inputs = shape.tolist()
    zeros = None
    if not scheme.symmetric:
        zeros = unpack_words(part_of(tensors, "weight_zero_point").T, scheme.bits, outputs).T
    octets = octets_of(packed)[..., : (inputs * scheme.bits + 7) // 8]
    return from_parts(octets, scale, zeros, scheme, (outputs, inputs))


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
    zeros = zero_codes(qtensor).to(torch.int16) - less(checkpoint_format)
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
    qweight, qzeros, scales, g_idx = (part_of(tensors, part) for part in ("qweight", "qzeros", "scales", "g_idx"))
    inputs, outputs = len(g_idx), qweight.shape[1]
    if not torch.equal(g_idx.long(), torch.arange(inputs) // (scheme.group_size or inputs)):
        raise ValueError(f"g_idx does not cut the inputs into runs, {scheme.granularity}: a QTensor cannot hold that")
    codes = unpack_gptq(qweight, scheme.bits, inputs)
    # One more than the largest code was 0 less one, wrapped around.
    zeros = (unpack_words(qzeros, scheme.bits, outputs).to(torch.int16) + less(checkpoint_format)) % 2**scheme.bits
    return from_parts(pack(codes, scheme.bits), scales.T, zeros.T, scheme, codes.shape)


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
    qweight, qzeros, scales = (part_of(tensors, part) for part in ("qweight", "qzeros", "scales"))
    codes = unpack_awq(qweight, scheme.bits)
    return from_parts(pack(codes, scheme.bits), scales.T, unpack_awq(qzeros, scheme.bits), scheme, codes.shape)


# ---------------------------------------------------------------- the parts of a weight


def zero_codes(qtensor):
    """The zero points as codes, which count up from the smallest integer: uint8 of shape (outputs, groups)."""
    qmin, _ = quant_range(qtensor.scheme.bits)
    codes = (qtensor.zero_point.to(torch.int16) - qmin).to(torch.uint8)
    return codes.to(qtensor.scale.device).broadcast_to(scale_rows(qtensor).shape)


def scale_rows(qtensor):
    """The scales as a matrix (outputs, groups); a scale of the whole tensor is repeated for each output."""
    return qtensor.scale.broadcast_to(qtensor.shape[0], qtensor.scale.shape[-1] if qtensor.scale.ndim else 1)


def from_parts(octets, scale, zeros, scheme, shape):
    """A QTensor from packed codes, scales and zero points as codes, (outputs, groups), or None for the middle code."""
    qmin, _ = quant_range(scheme.bits)
    zero_point = torch.tensor(0, dtype=torch.int8)
    if zeros is not None:
        zero_points = (zeros.to(torch.int16) + qmin).to(torch.int8).contiguous()
        if not scheme.symmetric:
            zero_point = zero_points
        elif zero_points.any():
            raise ValueError(f"there are zero points other than 0: the weight is not {scheme}")
    octets = octets.clone(memory_format=torch.contiguous_format)
    return QTensor.from_packed(octets, scale.float().contiguous(), zero_point, scheme, shape)


def part_of(tensors, key):
    """tensors[key], or one clear error."""
    if key not in tensors:
        raise ValueError(f"{key!r} is missing among {sorted(tensors)}")
    return tensors[key]


def less(checkpoint_format):
    """What a GPTQ checkpoint has taken off its zero points."""
    formats = {"gptq": 1, "gptq_v2": 0}
    if checkpoint_format not in formats:
        raise ValueError(f'checkpoint_format must be "gptq" or "gptq_v2", not {checkpoint_format!r}')
    return formats[checkpoint_format]


def rounded_scale(scale, dtype, name):
    """`scale` in `dtype`; ValueError where rounding moves one by over 1 percent: it is too small or too large."""
    rounded = scale.to(dtype)
    moved = (rounded.float() - scale).abs() > 0.01 * scale.abs()  # true of infinity as well
    if moved.any():
        raise ValueError(
            f"{name}: a scale of {scale[moved][0].item():.1e} becomes {rounded[moved][0].item():.1e} in {dtype}"
        )
    return rounded


def refusal(name, system, why):
    return ValueError(f"{name} cannot be written for {system}: {why}")


def check_grid(qtensor, system, name):
    """Raise unless the weight is a matrix whose scales belong to its rows, and whose zero points are whole numbers."""
    if len(qtensor.shape) != 2:
        raise refusal(name, system, f"it is no matrix but of shape {tuple(qtensor.shape)}")
    if qtensor.scheme.grid != "integer":
        raise refusal(name, system, f"the format has integers, and no {qtensor.scheme}")
    if qtensor.scheme.axis == 1:
        raise refusal(name, system, "the format has no scale per column")
    if qtensor.zero_point.is_floating_point():
        raise refusal(
            name, system, "its zero points are fractions; hqq_quantize(…, zero_dtype=torch.int8) makes whole ones"
        )


def check_full_groups(qtensor, system, name):
    """Raise unless the groups fill the rows."""
    inputs, group_size = qtensor.shape[1], qtensor.scheme.group_size
    if group_size is not None and inputs % group_size:
        raise refusal(
            name,
            system,
            f"its {inputs} inputs are no multiple of the group size {group_size}, and the format has no shorter last "
            "group; choose a group size that divides them, or leave the layer out with ignore",
        )


# ---------------------------------------------------------------- a model


def export_compressed_tensors(model, folder, tokenizer=None, max_shard_size="5GB"):
    """Write a quantized model as a folder that vLLM serves and transformers loads, with compressed-tensors installed.

    The weights are stored packed (format "pack-quantized", W4A16, W8A16 and their kin), the scales in float32. Of a
    float32 model the reader calculates with the very numbers that qlib does. In half precision it rounds the scales
    first, so that a weight may differ by two roundings of the dtype.

    Who reads what, late in 2026: compressed-tensors from 0.18 on reads 2 to 8 bits in both modes; before, only 2, 4 and
    8. vLLM serves 4 and 8 bits in both modes; its newer versions list 2 to 8 bits, the others in symmetric mode alone
    (compressed_tensors_wNa16.py). It joins q_proj, k_proj and v_proj, and gate_proj and up_proj: give those the same
    scheme. transformers 5.23 loads asymmetric weights, and T5, only with
    `quantization_config=CompressedTensorsConfig(dequantize=True)`, and then reads all layers by the first scheme.

    The folder is written beside its place and then put there, so that an interrupted export leaves an older one whole.

    Args:
        model: a model of transformers with QLinear layers, such as `quantize_model` leaves; it stays as it is.
        folder: where to; its parent is made if need be.
        tokenizer: one of transformers, to go with the model, or None.
        max_shard_size: bytes of a file, or a string such as "200MB"; a larger model is written in several.

    Raises:
        TypeError: the model is not one of transformers.
        ValueError: no layer is quantized, or the format has no place for one: a scale per column, a last group that is
            shorter than the others, a layer that was a Conv1D (GPT-2), a scale that the model's dtype cannot hold; or
            there are experts, which qlib leaves as they are and readers take for quantized. The message names the
            layer. Nothing is written then.
    """
    layers = exportable_layers(model)
    tensors = model.state_dict()
    for name, layer in layers.items():
        for part in layer.state_dict().keys() - {"bias"}:
            tensors.pop(f"{name}.{part}")
        tensors |= {f"{name}.{key}": tensor for key, tensor in to_compressed_tensors(layer.qtensor, name).items()}
    with folder_in_one_piece(folder) as unfinished:
        plain_copy(model).save_pretrained(unfinished, state_dict=tensors, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        config = read_json(unfinished / CONFIG)
        write_json(unfinished / CONFIG, config | {"quantization_config": quantization_config(model, layers)})


def exportable_layers(model):
    """{name: QLinear} of a model, every one of which the format has a place for."""
    import accelerate

    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise TypeError(f"only a model of transformers can be exported, not a {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, QUANTIZED) and not isinstance(module, QLinear):
            raise refusal(name, "compressed-tensors", f"it is of the kind {type(module).__name__}, not a QLinear")
    layers = {name: module for name, module in modules.items() if isinstance(module, QLinear)}
    if not layers:
        raise ValueError(f"no layer of this {type(model).__name__} is quantized: quantize_model(model, scheme) first")
    with accelerate.init_empty_weights():
        unquantized = type(model)(copy.deepcopy(model.config))
    for name, layer in layers.items():
        if is_conv1d(unquantized.get_submodule(name)):
            raise refusal(
                name,
                "compressed-tensors",
                f"in a {type(model).__name__} it is a Conv1D, and only an nn.Linear can be loaded",
            )
        check_grid(layer.qtensor, "compressed-tensors", name)
        check_full_groups(layer.qtensor, "compressed-tensors", name)
        rounded_scale(scale_rows(layer.qtensor), model.dtype, name)  # what a reader will do
    for name, module in modules.items():
        if holds_experts(module):
            raise refusal(name, "compressed-tensors", "they are float experts, which its readers take for quantized")
    return layers


def holds_experts(module):
    """Whether a module keeps the weights of several experts in one tensor, (experts, outputs, inputs)."""
    is_conv = isinstance(module, torch.nn.modules.conv._ConvNd)
    return not is_conv and any(p.ndim == 3 and p.shape[0] > 1 for p in module.parameters(recurse=False))


def quantization_config(model, layers):
    """What config.json says to compressed-tensors: the schemes, the layers of each, and the layers that stay float."""
    groups = {}
    for name, layer in layers.items():
        groups.setdefault(layer.scheme, []).append(name)
    config_groups = {
        # One scheme for all needs no list of names: "Linear" is every linear layer, but for those to ignore.
        f"group_{i}": {
            "targets": ["Linear"] if len(groups) == 1 else names,
            "weights": weight_arguments(scheme),
            "format": COMPRESSED_TENSORS_FORMAT,
        }
        for i, (scheme, names) in enumerate(groups.items())
    }
    floats = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) or is_conv1d(m)]
    return {
        "quant_method": "compressed-tensors",
        "format": COMPRESSED_TENSORS_FORMAT,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": floats,
    }


def weight_arguments(scheme):
    """A Scheme in the words of compressed-tensors' QuantizationArgs."""
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }


def plain_copy(model):
    """The model under another hat: the same tensors, a configuration of its own, no memory of how it was loaded."""
    plain = copy.copy(model)
    plain.__dict__.pop("hf_quantizer", None)
    plain.config = copy.deepcopy(model.config)
    plain.config.__dict__.pop("quantization_config", None)
    return plain
