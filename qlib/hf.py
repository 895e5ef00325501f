"""The plug-in for transformers: `from_pretrained` and `save_pretrained` speak qlib once this module is imported.

    import qlib.hf
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=qlib.hf.QlibConfig(bits=4, group_size=64))
    model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)

Each weight is quantized as it is read, so that no more than one of them is held in full precision. The layers are the
same QLinear that `quantize_model` makes, and the folder is the same that `save_quantized` writes. Written for the
interfaces of transformers 5.23: `register_quantization_config` and `register_quantizer`.
"""

import dataclasses
import re

from transformers.core_model_loading import ConversionOps, WeightRenaming
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qlib.checkpoint import METHOD, OLD_PARTS, QUANTIZED, entries_of, put_empty_layers, share_weight
from qlib.kernels.choose import plan_for
from qlib.linear import QLinear
from qlib.model import choose_layers, ignore_rules, replace
from qlib.scheme import SHARED_SCALES, Scheme
from qlib.tensor import QTensor


@register_quantization_config(METHOD)
class QlibConfig(QuantizationConfigMixin):
    """What `from_pretrained` is to do with the weights of the linear layers.

    Args:
        bits, symmetric, axis, group_size, grid, scales: as for Scheme.
        activation_bits: None for float activations, 8 for int8 ones: see QLinear.
        ignore: names and globs of layers to leave, as for `quantize_model`.
        layers: {name: entry, see `qlib.checkpoint`} of a model that is quantized already; config.json has it, and
            nobody else gives it.

    Raises:
        ValueError, TypeError: there is no such Scheme.
    """

    def __init__(
        self,
        bits=8,
        symmetric=True,
        axis=0,
        group_size=None,
        grid="integer",
        scales="float32",
        ignore=("lm_head",),
        activation_bits=None,
        layers=None,
        quant_method=METHOD,
    ):
        self.quant_method = quant_method
        scheme = Scheme(bits, symmetric, axis, group_size, grid, scales)
        self.bits, self.symmetric, self.axis, self.group_size, self.grid, self.scales = dataclasses.astuple(scheme)
        self.activation_bits = activation_bits
        self.ignore = list(ignore_rules(ignore))
        if not all(isinstance(rule, str) for rule in self.ignore):
            raise TypeError(f"config.json can only hold names and globs; give quantize_model the others: {self.ignore}")
        self.layers = layers

    @property
    def scheme(self):
        return Scheme(self.bits, self.symmetric, self.axis, self.group_size, self.grid, self.scales)


@register_quantizer(METHOD)
class QlibQuantizer(HfQuantizer):
    """Puts QLinear layers in a model that transformers loads: empty ones for a file to fill, or one a float weight."""

    def _process_model_before_weight_loading(self, model, **_):
        if self.pre_quantized:
            origin = f"config.json of {model.name_or_path or 'the model'}"
            put_empty_layers(model, self.quantization_config.layers, origin)
            # What layers share is stored once, and put back when all is read.
            missing = {f"^{re.escape(name)}\\.(?!(bias|example)$)" for name in self.shared_layers()}
            missing.add(r"\.example$")  # which the first versions did not write
            model._keys_to_ignore_on_load_missing = {*(model._keys_to_ignore_on_load_missing or ()), *missing}
            return
        if model.tp_size is not None:
            raise ValueError("tensor parallelism takes a model that is quantized already: save_quantized it first")
        # transformers ties weights only after it has loaded them, so what will be tied has to be asked for.
        tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
        chosen, _ = choose_layers(model, self.quantization_config.ignore)
        self.weights = {f"{name}.weight" for name in chosen} - tied

    def shared_layers(self):
        """{name of a layer: the name of the layer whose weight it shares}."""
        entries = self.quantization_config.layers
        return {name: entry["shares"] for name, entry in entries.items() if "shares" in entry}

    def _process_model_after_weight_loading(self, model, **_):
        if self.pre_quantized:
            for name, other in self.shared_layers().items():
                share_weight(model, name, other)
        self.quantization_config.layers = entries_of(model)
        # transformers would undo the renamings when it saves the model.
        if getattr(model, "_weight_conversions", None):
            model._weight_conversions = [rule for rule in model._weight_conversions if rule not in self.renamings]
        if model.tp_size is not None:
            share_layers(model)

    def get_state_dict_and_metadata(self, model):
        """What to save: what layers share once. config.json is told of all layers that are quantized by now."""
        self.quantization_config.layers = entries_of(model)
        shared = tuple(f"{name}." for name in self.shared_layers())
        if not shared:
            return None, {}
        state = model.state_dict()
        own = (".bias", ".example")  # which a layer that shares its weight has all the same
        return {key: state[key] for key in state if not key.startswith(shared) or key.endswith(own)}, {}

    def get_weight_conversions(self):
        """How the tensors of qlib's first version are called now."""
        self.renamings = [WeightRenaming(rf"\.{old}$", f".{new}") for old, new in OLD_PARTS.items()]
        return self.renamings

    def param_needs_quantization(self, model, param_name, **_):
        return not self.pre_quantized and param_name in self.weights

    def param_element_size(self, model, param_name, param):
        scheme = self.quantization_config.scheme
        return scheme.bits / 8 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self):
        return QuantizeWeight(self)

    @property
    def is_trainable(self):
        return False

    def is_serializable(self):
        return True


class QuantizeWeight(ConversionOps):
    """What is done with one float weight that was read for a linear layer: a QLinear takes the layer's place."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def convert(self, input_dict, model=None, full_layer_name=None, missing_keys=None, **_):
        """Quantize the one tensor in `input_dict`, {pattern: tensor or [tensor]}; nothing is left to be set."""
        (weight,) = input_dict.values()
        weight = weight[0] if isinstance(weight, list) else weight
        name = full_layer_name.removesuffix(".weight")
        layer = model.get_submodule(name)
        layer.weight = type(layer.weight)(weight, requires_grad=False)
        config = self.quantizer.quantization_config
        replace(model, {name: QLinear.from_linear(layer, config.scheme, name, config.activation_bits)})
        missing_keys.discard(full_layer_name)
        return {}


# ---------------------------------------------------------------- tensor parallelism


def share_layers(model):
    """Leave each process its share of every QLinear, as transformers' plan for the model says.

    transformers shares out parameters, and the weight of a QLinear is made of buffers, so each process reads it whole
    and then keeps its part.
    """
    mesh = model._device_mesh if model._device_mesh.ndim == 1 else model._device_mesh["tp"]
    for name, layer in model.named_modules():
        style = model.tp_plan.get(replace_layer_number_by_wildcard(name))
        if style is not None and isinstance(layer, QUANTIZED):
            share_layer(layer, name, style, mesh.get_local_rank(), mesh.size())


def share_layer(layer, name, style, rank, size):
    """Cut a QLinear down to this process's rows ("colwise": outputs) or columns ("rowwise": inputs), in place.

    Raises:
        ValueError: the layer is of another kind, the plan asks for another style, or a share would cut a group in two.
    """
    if not isinstance(layer, QLinear):
        raise ValueError(
            f"{name}: tensor parallelism shares out the weight of a QLinear, not of {type(layer).__name__}"
        )
    qtensor, scheme = layer.qtensor, layer.scheme
    if scheme.scales in SHARED_SCALES:
        raise ValueError(f"{name}: the scales of {scheme} belong together and cannot be shared out")
    if style not in ("colwise", "rowwise"):
        raise ValueError(f"{name}: tensor parallelism {style!r} is not for quantized layers; leave it to `ignore`")
    dim = 0 if style == "colwise" else 1
    whole = qtensor.shape[dim]
    unit = scheme.group_size or 1 if dim == 1 else 1
    if whole % (size * unit):
        raise ValueError(f"{name}: {whole} {'inputs' if dim else 'outputs'} do not share out among {size} by {unit}")
    share = slice(rank * whole // size, (rank + 1) * whole // size)
    scale, zero_point = (share_of(part, dim, share, whole) for part in (qtensor.scale, qtensor.zero_point))
    part = QTensor(qtensor.values[share] if dim == 0 else qtensor.values[:, share], scale, zero_point, scheme)
    layer.qtensor = part
    layer.out_features, layer.in_features = part.shape
    layer.plan = plan_for(scheme, layer.in_features)
    if layer.bias is not None and dim == 0:
        layer.bias = layer.bias[share].clone()
    elif rank > 0:
        layer.bias = None  # the processes' outputs are added up, and the bias belongs in the sum once
    layer._hf_quantized_needs_local_tp = True  # transformers: hand this layer plain tensors


def share_of(qparam, dim, share, whole):
    """The part of a scale or zero point that belongs to the `share` of `whole` rows or columns."""
    if qparam.ndim < 2 or qparam.shape[dim] == 1:
        return qparam
    per = whole // qparam.shape[dim]  # 1, or the size of a group
    share = slice(share.start // per, share.stop // per)
    return (qparam[share] if dim == 0 else qparam[:, share]).clone()
