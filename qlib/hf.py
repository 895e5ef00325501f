"""The plug-in for transformers: `from_pretrained` and `save_pretrained` speak qlib once this module is imported.

    import qlib.hf
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=qlib.hf.QlibConfig(bits=4, group_size=64))
    model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)

Each weight is quantized as it is read, so that no more than one of them is held in full precision. The layers are the
same QLinear that `quantize_model` makes, and the folder is the same that `save_quantized` writes; but it is
transformers that writes it here, file by file, so a `save_pretrained` that is killed may leave half a model. Written
for the interfaces of transformers 5.23: `register_quantization_config` and `register_quantizer`.
"""

import copy
import dataclasses
import re

import torch
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qlib.checkpoint import METHOD, QUANTIZED, entries_of, packed_layers, put_empty_layers, share_weight, stored_state
from qlib.experts import PackedParameter, experts_forward
from qlib.kernels.choose import plan_for
from qlib.linear import PackedLayer, QLinear
from qlib.model import choose_layers, ignore_rules, matrix_of, parameters_to_pack, replace, report_lines, tensors_of
from qlib.pretrained import OLD_PARTS, finder
from qlib.report import Report, SkippedLayer, state_dict_bytes
from qlib.scheme import SHARED_SCALES, Scheme
from qlib.tensor import QTensor

# Of transformers' ways to compute a mixture's experts, the one that reads packed weights.
ALL_EXPERTS_FUNCTIONS.register(METHOD, experts_forward)


@register_quantization_config(METHOD)
class QlibConfig(QuantizationConfigMixin):
    """What `from_pretrained` is to do with the weights of the linear layers.

    Args:
        bits, symmetric, axis, group_size, grid, scales: as for Scheme.
        activation_bits: None for float activations, 8 for int8 ones: see QLinear.
        ignore: names and globs of layers to leave, as for `quantize_model`.
        other_weights: whether every other large weight is packed as well: see `quantize_model`.
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
        other_weights=False,
        layers=None,
        quant_method=METHOD,
    ):
        self.quant_method = quant_method
        scheme = Scheme(bits, symmetric, axis, group_size, grid, scales)
        self.bits, self.symmetric, self.axis, self.group_size, self.grid, self.scales = dataclasses.astuple(scheme)
        self.activation_bits, self.other_weights = activation_bits, other_weights
        self.ignore = list(ignore_rules(ignore))
        if not all(isinstance(rule, str) for rule in self.ignore):
            raise TypeError(f"config.json can only hold names and globs; give quantize_model the others: {self.ignore}")
        self.layers = layers

    @property
    def scheme(self):
        return Scheme(self.bits, self.symmetric, self.axis, self.group_size, self.grid, self.scales)

    def to_dict(self):
        """What config.json says: of a quantized model its layers, what was asked for being in them."""
        settings = super().to_dict()
        return settings if self.layers is None else {key: settings[key] for key in ("quant_method", "layers")}


@register_quantizer(METHOD)
class QlibQuantizer(HfQuantizer):
    """Puts quantized layers in a model that transformers loads: empty ones for a file to fill, or one a float weight.

    After loading, `model.hf_quantizer.report` is a Report of what a float checkpoint became.
    """

    report = error = None

    def _process_model_before_weight_loading(self, model, **_):
        if self.pre_quantized:
            self.expect_quantized(model)
            return
        if model.tp_size is not None:
            raise ValueError("tensor parallelism takes a model that is quantized already: save_quantized it first")
        # transformers ties weights only after it has loaded them, so what will be tied has to be asked for.
        tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
        config = self.quantization_config
        packs = parameters_to_pack(model, config.ignore, config.other_weights)
        self.packs = {name: layout for name, layout in packs.items() if name not in tied}
        chosen, _ = choose_layers(model, config.ignore, self.packs.keys())
        self.weights = {f"{name}.weight" for name in chosen} - tied
        self.lines = []
        # What one tensor of a file becomes several of is converted in the name of the first.
        rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightConverter)]
        self.several = [rule.target_patterns[0] for rule in rules if len(rule.target_patterns) > 1]

    def expect_quantized(self, model):
        """Make a float model ready for the file of a quantized one."""
        config = self.quantization_config
        origin = f"config.json of {model.name_or_path or 'the model'}"
        config.layers = entries_in_model(config.layers, model)
        packed = [name for name, entry in config.layers.items() if entry.get("kind") == "parameter"]
        if packed and model.tp_size is not None:
            raise ValueError(f"{packed[0]}: tensor parallelism shares out no packed experts; leave them to `ignore`")
        put_empty_layers(model, config.layers, origin)
        # What layers share is stored once, and put back when all is read.
        missing = {f"^{re.escape(name)}\\.(?!(bias|example)$)" for name in self.shared_layers()}
        model._keys_to_ignore_on_load_missing = {*(model._keys_to_ignore_on_load_missing or ()), *missing}
        empty = {rf"(^|\.){re.escape(layer.float_name(f'{name}.'))}$" for name, layer in packed_layers(model)}
        unused = {r"\.example$", *empty}  # which are empty, see PackedLayer
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *unused}

    def shared_layers(self):
        """{name of a layer: the name of the layer whose weight it shares}."""
        entries = self.quantization_config.layers
        return {name: entry["shares"] for name, entry in entries.items() if "shares" in entry}

    def _process_model_after_weight_loading(self, model, **_):
        if self.error is not None:
            raise self.error
        if self.pre_quantized:
            check_all_read(model, self.shared_layers())
            for name, other in self.shared_layers().items():
                share_weight(model, name, other)
        else:
            self.report = self.report_of(model)
        self.quantization_config.layers = entries_of(model)
        use_packed_experts(model)
        if model.tp_size is not None:
            share_layers(model)

    def report_of(self, model):
        """The Report of a model that was quantized while it was loaded."""
        done = {line.name for line in self.lines}
        fresh, skipped = choose_layers(model, self.quantization_config.ignore, done)
        skipped += [SkippedLayer(name, "its weight was in no file", matrix_of(model, name).nbytes) for name in fresh]
        after = state_dict_bytes(tensors_of(model))
        saved = sum(line.bytes_before - line.bytes_after for line in self.lines)
        return Report(self.lines, skipped, after + saved, after)

    def get_state_dict_and_metadata(self, model):
        """What to save: what layers share once. config.json is told of all layers that are quantized by now."""
        self.quantization_config.layers = entries_of(model)
        model.config.quantization_config = self.quantization_config
        model._weight_conversions = []  # no name is changed back: a folder has the model's own, as from save_quantized
        state, shared = stored_state(model), tuple(f"{name}." for name in self.shared_layers())
        own = (".bias", ".example")  # which a layer that shares its weight has all the same
        return {key: state[key] for key in state if not key.startswith(shared) or key.endswith(own)}, {}

    def get_weight_conversions(self):
        """How the tensors of qlib's first version are called now."""
        return [WeightRenaming(rf"\.{old}$", f".{new}") for old, new in OLD_PARTS.items()]

    def param_needs_quantization(self, model, param_name, **_):
        if self.pre_quantized:
            return False
        first_of_several = any(re.search(pattern, param_name) for pattern in self.several)
        return first_of_several or param_name in self.weights or param_name in self.packs

    def param_element_size(self, model, param_name, param):
        scheme = self.quantization_config.scheme
        return scheme.bits / 8 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self):
        return QuantizeWeight(self)

    @property
    def is_trainable(self):
        return True

    def is_serializable(self):
        return True


class QuantizeWeight(ConversionOps):
    """What is done with the float weights that were read: quantized ones take the places of their layers."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def convert(self, input_dict, model=None, missing_keys=None, **_):
        """Quantize the tensors of `input_dict`, {name: tensor or [tensor]}; returns those to be set as they are."""
        left = {}
        for name, weight in input_dict.items():
            weight = weight[0] if isinstance(weight, list) else weight
            if name in self.quantizer.weights or name in self.quantizer.packs:
                missing_keys.discard(name)
                try:
                    self.put_quantized(model, name, weight)
                except (TypeError, ValueError) as error:  # of which transformers would say that there was one
                    self.quantizer.error = self.quantizer.error or error
            else:
                left[name] = weight
        return left

    def put_quantized(self, model, name, weight):
        """Put a weight that was read in the place of its layer or its parameter, quantized."""
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, key)
        if weight.shape != old.shape:
            raise ValueError(f"{name} is of shape {tuple(weight.shape)}; the model needs {tuple(old.shape)}")
        setattr(module, key, torch.nn.Parameter(weight, requires_grad=False))
        config, packs = self.quantizer.quantization_config, self.quantizer.packs
        if name in packs:
            quantized = PackedParameter.from_parameter(weight, config.scheme, **packs[name], name=name)
        else:
            name = owner
            quantized = QLinear.from_linear(module, config.scheme, name, config.activation_bits)
            weight = matrix_of(model, name).detach()
        mark_as_read(quantized, module)
        self.quantizer.lines += report_lines(name, weight, {name: quantized})
        replace(model, {name: quantized})


def entries_in_model(entries, model):
    """Entries under the names that a model has: a base model lacks the prefix of a head, and the other way round.

    What belongs to another head is left out: a base model has no use for it.
    """
    places = model.state_dict()
    find, children, found = finder(model, places), {name for name, _ in model.named_children()}, {}
    for name, entry in entries.items():
        own, ending = name, "" if entry.get("kind") == "parameter" else ".weight"
        if f"{name}{ending}" not in places:
            own = find(f"{name}{ending}")[0].removesuffix(ending)
        if f"{own}{ending}" in places or own.partition(".")[0] in children:
            found[own] = entry
    return found


def mark_as_read(quantized, layer):
    """Keep transformers from initializing what a quantized layer holds: all but a bias that is yet to be read."""
    for name, tensor in tensors_of(quantized).items():
        was_read = getattr(getattr(layer, name, None), "_is_hf_initialized", False)
        tensor._is_hf_initialized = name != "bias" or was_read


def check_all_read(model, shared):
    """Raise one clear error if a part of a quantized layer was in no file: it would be whatever the memory held."""
    for name, layer in model.named_modules():
        if not isinstance(layer, PackedLayer):
            continue
        for part, tensor in layer.named_buffers(recurse=False):
            read = getattr(tensor, "_is_hf_initialized", False) or tensor.is_meta  # on the disk, that is
            if not read and (name not in shared or part == "bias"):
                raise ValueError(
                    f"{model.name_or_path or 'the checkpoint'} lacks {name}.{part}, a part of a quantized layer"
                )


def attach(model):
    """Let transformers' own save_pretrained write a model that was quantized after it was loaded or made."""
    if not isinstance(getattr(model, "hf_quantizer", None), QlibQuantizer):
        model.hf_quantizer = QlibQuantizer(QlibConfig(layers={}), pre_quantized=True)
        give_own_config(model)
    model.config._is_quantized = True  # as after from_pretrained: Mamba, for one, then reads no weight by itself
    use_packed_experts(model)


def give_own_config(model):
    """Let no other model share a model's configuration, which is going to say how this one is quantized."""
    copies = {}
    copy.deepcopy(model.config, copies)  # which notes the copy of each part by the part's identity
    for module in model.modules():
        if isinstance(vars(module).get("config"), PreTrainedConfig):
            module.config = copies.get(id(module.config), module.config)


def use_packed_experts(model):
    """Compute a mixture by `experts_forward`, if experts of the model are packed."""
    if (
        any(isinstance(module, PackedParameter) for module in model.modules())
        and model._can_set_experts_implementation()
    ):
        model.set_experts_implementation(METHOD)


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
