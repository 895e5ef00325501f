"""compressed-tensors: the format of vLLM and llm-compressor, of one weight and of a whole model.

`to_…` and `from_…` take a QTensor to the tensors of its "pack-quantized" layout and back; `export_compressed_tensors`
writes a model. The package is not needed for it.
"""

import copy
import warnings

import torch

from qlib.checkpoint import QUANTIZED
from qlib.experts import PackedParameter, is_experts, parameter_name
from qlib.export.shared import (
    check_full_groups,
    check_grid,
    from_parts,
    octets_of,
    pack_words,
    refusal,
    required,
    rounded_scale,
    scale_rows,
    unpack_words,
    words_of,
    zero_codes,
)
from qlib.folders import CONFIG, folder_in_one_piece, read_json, write_json
from qlib.linear import QLinear, is_conv1d, is_float

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
    packed, scale, shape = (required(tensors, f"weight_{part}") for part in ("packed", "scale", "shape"))
    outputs, inputs = shape.tolist()
    zeros = None
    if not scheme.symmetric:
        zeros = unpack_words(required(tensors, "weight_zero_point").T, scheme.bits, outputs).T
    octets = octets_of(packed)[..., : (inputs * scheme.bits + 7) // 8]
    return from_parts(octets, scale, zeros, scheme, (outputs, inputs))


# ---------------------------------------------------------------- a model


def export_compressed_tensors(model, folder, tokenizer=None, max_shard_size="5GB"):
    """Write a quantized model as a folder that vLLM serves and transformers loads, with compressed-tensors installed.

    The weights are stored packed (format "pack-quantized", W4A16, W8A16 and their kin), the scales in float32. Of a
    float32 model the reader calculates with the very numbers that qlib does. In half precision it rounds the scales
    first, so that a weight may differ by two roundings of the dtype.

    Who reads what, late in 2026: compressed-tensors from 0.18 on reads 2 to 8 bits in both modes; before, only 2, 4 and
    8. vLLM serves 4 and 8 bits in both modes; its newer versions list 2 to 8 bits, the others in symmetric mode alone
    (compressed_tensors_wNa16.py). It joins q_proj, k_proj and v_proj, and gate_proj and up_proj: give those the same
    scheme. transformers 5.23 loads asymmetric weights, T5, and models whose own initialization looks at the weights of
    linear layers (Falcon, Mamba, Gemma 3 and others; a warning says so) only with
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
    if looks_for_weights(model, layers):
        warnings.warn(
            f"transformers loads this {type(model).__name__} only with quantization_config=CompressedTensorsConfig("
            "dequantize=True): its own initialization looks for weights under the names that they have in float",
            stacklevel=2,
        )
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


def looks_for_weights(model, layers):
    """Whether a model's own initialization, which transformers runs on loading, looks for the weight of a layer.

    Those that compressed-tensors has filled have other names, so the loading fails. It is tried on the meta device.
    """
    unfilled = float_structure(model)
    for name in layers:
        del unfilled.get_submodule(name).weight
    for module in unfilled.modules():
        module._is_hf_initialized = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            unfilled.initialize_weights()
    except AttributeError:
        return True
    return False


def float_structure(model):
    """A model of the same class and configuration on the meta device, nothing in it quantized."""
    import accelerate

    with accelerate.init_empty_weights():
        return type(model)(copy.deepcopy(model.config))


def exportable_layers(model):
    """{name: QLinear} of a model, every one of which the format has a place for."""
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise TypeError(f"only a model of transformers can be exported, not a {type(model).__name__}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if isinstance(module, QUANTIZED) and not isinstance(module, QLinear):
            name = parameter_name(name) if isinstance(module, PackedParameter) else name
            raise refusal(name, "compressed-tensors", f"it is of the kind {type(module).__name__}, not a QLinear")
    layers = {name: module for name, module in modules.items() if isinstance(module, QLinear)}
    if not layers:
        raise ValueError(f"no layer of this {type(model).__name__} is quantized: quantize_model(model, scheme) first")
    unquantized = float_structure(model)
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
    """Whether a module keeps the float weights of several experts in one tensor, (experts, outputs, inputs)."""
    named = is_experts(module) or "Expert" in type(module).__name__
    return named and any(weight.ndim == 3 for weight in module.parameters(recurse=False))


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
    floats = [name for name, m in model.named_modules() if is_float(m, torch.nn.Linear) or is_conv1d(m)]
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
