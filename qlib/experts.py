"""Weights that no linear layer holds: the experts of a mixture, in one tensor for all; and, if asked for, any other.

Such a weight is kept packed in the place of the module's parameter, and the module's own code reads real numbers there
as before. `experts_forward` goes without that: it reads the packed weights of those experts alone that a batch needs.
"""

import dataclasses
import math

import torch
from torch.nn.utils import parametrize

from qlib.kernels import choose as kernels
from qlib.linear import PackedLayer, plain_linear
from qlib.read_only import READ_ONLY
from qlib.scheme import Scheme
from qlib.tensor import QTensor, quantize_tensor

# The weights of transformers' experts, (experts, outputs, inputs), or (experts, inputs, outputs) if transposed.
EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
# Other weights are worth packing from this many numbers on.
LARGE = 1024


class PackedParameter(PackedLayer):
    """A parameter of any module, kept packed, and made real anew whenever the module reads it.

    It is a parametrization without an original (torch.nn.utils.parametrize): the module's attribute becomes a property
    that calls it.

    Args:
        shape: of the parameter.
        scheme: of the matrix that its values make up.
        rows: of that matrix; the columns are the rest.
        transposed: whether the parameter's last two dimensions change places first: inputs come last in the matrix.
        dtype: of the real numbers.
        device: where the buffers are made.
    """

    def __init__(self, shape, scheme, rows, transposed=False, dtype=torch.float32, device=None):
        super().__init__(rows, math.prod(shape) // max(rows, 1), scheme, device, dtype)
        self.shape, self.transposed = tuple(shape), transposed

    @classmethod
    def from_parameter(cls, weight, scheme, rows, transposed=False, name="weight"):
        """Quantize a parameter; raises what `quantize_tensor` raises."""
        return cls.from_qtensor(quantize_tensor(as_matrix(weight, rows, transposed), scheme, name), weight, transposed)

    @classmethod
    def from_qtensor(cls, qtensor, weight, transposed=False):
        """On a matrix that is quantized already, in the place of a parameter of the shape and dtype of `weight`."""
        layer = cls(weight.shape, qtensor.scheme, qtensor.shape[0], transposed, weight.dtype, qtensor.packed.device)
        layer.qtensor = qtensor
        return layer

    @classmethod
    def empty(cls, weight, name, rows, transposed=False, zero_dtype="int8", **scheme):
        """For a file to fill, in the place of a float parameter."""
        if type(rows) is not int or rows < 1:
            raise ValueError(f"rows must be a whole number above 0, not {rows!r}")
        if weight.numel() % rows:
            raise ValueError(f"the {weight.numel()} numbers of {name} make no matrix of {rows!r} rows")
        return cls(weight.shape, Scheme(**scheme), rows, transposed, weight.dtype, weight.device).make_room(zero_dtype)

    def settings(self):
        """What config.json says of it: the matrix's settings, and how it lies in the parameter."""
        layout = {"rows": self.weight_shape[0]} | ({"transposed": True} if self.transposed else {})
        return super().settings() | layout

    def forward(self):
        """The real numbers, in the parameter's shape and dtype."""
        if not self.transposed:
            return self.weight.reshape(self.shape)
        *leading, inputs, outputs = self.shape
        return self.weight.reshape(*leading, outputs, inputs).mT

    def right_inverse(self, weight):
        """What parametrize calls when the module's attribute is set: by itself first, then by whoever writes to it."""
        if self.placed:
            raise ValueError(READ_ONLY)
        return ()  # no original to keep

    placed = False  # whether it stands in a module

    def float_name(self, prefix):
        """The name of the float parameter."""
        return parameter_name(prefix.removesuffix("."))

    def extra_repr(self):
        return f"{tuple(self.shape)}, {self.weight_repr()}"


def as_matrix(weight, rows, transposed=False):
    """The values of a parameter as the matrix that is quantized, (rows, columns)."""
    return (weight.mT if transposed else weight).reshape(rows, -1)


def put_parameter(module, name, packed):
    """Let a PackedParameter take the place of a module's parameter, which is dropped."""
    module._parameters[name] = torch.nn.Parameter(torch.empty(packed.shape, device="meta"), requires_grad=False)
    parametrize.register_parametrization(module, name, packed, unsafe=True)  # the checks would dequantize it
    packed.placed = True
    module.register_load_state_dict_pre_hook(drop_empty)


def drop_empty(module, state_dict, prefix, *_):
    """Take the empty tensors, see PackedLayer, out of what is loaded into a module with PackedParameters."""
    for name in module.parametrizations:
        if packed_parameter(module, name) and state_dict.get(f"{prefix}{name}", torch.ones(1)).numel() == 0:
            del state_dict[f"{prefix}{name}"]


def packed_parameter(module, name):
    """The PackedParameter of this name of a module, or None."""
    lists = getattr(module, "parametrizations", {})
    return lists[name][0] if name in lists and isinstance(lists[name][0], PackedParameter) else None


def parameter_name(name):
    """The name of the parameter in whose place a PackedParameter stands, from that of the module that this is."""
    head, _, tail = name.rpartition("parametrizations.")
    return head + tail.removesuffix(".0")


def packed_name(name):
    """The name of the module that a PackedParameter is, from that of the parameter in whose place it stands."""
    owner, _, key = name.rpartition(".")
    return f"{owner}.parametrizations.{key}.0"


# ---------------------------------------------------------------- which


def is_experts(module):
    """Whether a module is transformers' experts: told by what its interface sets, for the core does not import it."""
    return {"has_gate", "has_bias", "is_transposed"} <= vars(module).keys()


def expert_parameters(module):
    """{name: {"rows", "transposed"}} of the weights of a module that are those of experts."""
    if not is_experts(module):
        return {}
    weights = {name: w for name, w in module.named_parameters(recurse=False) if name in EXPERT_WEIGHTS and w.ndim == 3}
    transposed = module.is_transposed
    return {
        name: {"rows": weight.shape[0] * weight.shape[2 if transposed else 1], "transposed": transposed}
        for name, weight in weights.items()
    }


def large_parameters(module):
    """{name: {"rows"}} of all large weights of a module, for a last resort.

    A row of a convolution is what makes one output; of anything else, the last dimension. Recurrent layers are left,
    which hold their weights a second time, and so is what a weight is made of by a parametrization.
    """
    if isinstance(module, torch.nn.RNNBase | parametrize.ParametrizationList):
        return {}
    convolution = isinstance(module, torch.nn.modules.conv._ConvNd)
    return {
        name: {"rows": weight.shape[0] if convolution else weight.numel() // weight.shape[-1]}
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and weight.is_floating_point() and weight.numel() >= LARGE
    }


# ---------------------------------------------------------------- what experts do


def experts_forward(experts, hidden_states, top_k_index, top_k_weights):
    """An implementation of transformers' experts interface that reads the weights of those experts that are needed.

    Args:
        experts: the module; its weights may be packed or float.
        hidden_states: (tokens, inputs).
        top_k_index: (tokens, k), which experts each token goes to; from `num_experts` on, to another process's.
        top_k_weights: (tokens, k), what their outputs are multiplied by.

    Returns:
        (tokens, inputs), of the dtype of `hidden_states`.
    """
    first = linear_of_expert(experts, "gate_up_proj" if experts.has_gate else "up_proj")
    second = linear_of_expert(experts, "down_proj")
    out = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    for expert in top_k_index.unique().tolist():
        if expert >= experts.num_experts:
            continue
        token, place = (top_k_index == expert).nonzero(as_tuple=True)
        hidden = first(hidden_states[token], expert)
        hidden = second(experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden), expert)
        if getattr(experts, "has_post_expert_norm", False):
            hidden = experts.post_expert_norm(hidden)
        out = out.index_add(0, token, (hidden * top_k_weights[token, place, None]).float())
    return out.to(hidden_states.dtype)


def linear_of_expert(experts, name):
    """A function linear(x, expert) for the weight of this name of a module of experts, its bias included."""
    biases = getattr(experts, f"{name}_bias") if experts.has_bias else None
    packed = packed_parameter(experts, name)

    def float_linear(x, expert):
        weight = getattr(experts, name)[expert]
        bias = None if biases is None else biases[expert]
        return torch.nn.functional.linear(x, weight.mT if experts.is_transposed else weight, bias)

    if packed is None:
        return float_linear
    whole, height = packed.qtensor, packed.weight_shape[0] // packed.shape[0]
    scheme, scale, columns = dataclasses.replace(whole.scheme, scales="float32"), whole.scale, whole.shape[1]
    plan = kernels.plan_for(scheme, columns)

    def packed_linear(x, expert):
        rows = slice(expert * height, (expert + 1) * height)
        codes, bias = whole.packed[rows], None if biases is None else biases[expert]
        qparams = [part[rows] if scheme.axis == 0 and part.ndim else part for part in (scale, whole.zero_point)]
        zero_point = None if scheme.symmetric else qparams[1]
        if plan is not None and kernels.fits(x, codes, qparams[0], zero_point, bias, columns, plan):
            return kernels.linear(x, codes, qparams[0], zero_point, bias, plan)
        return plain_linear(x, QTensor.from_packed(codes, *qparams, scheme, (height, columns)), bias)

    return packed_linear
