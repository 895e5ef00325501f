"""The ways to run a model's linear layers that are compared. Each is a function that converts a float32 model in place.

A peer is imported only when its way is converted, so that one that is missing or broken costs its own lines alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear as matmul

from qlib import QLinear, Scheme, quantize_tensor

GROUP = 64


class Way(NamedTuple):
    """One way to run a model.

    Args:
        name: what the table calls it.
        bits: of a weight, scales not counted.
        dtype: of what flows through the model.
        convert: function of a float32 model that gives the model to run; it may change the one it gets.
        peer: the package that it needs and the course does not; None if there is none.
        whole_model: whether it is measured in a model, too, and not in single layers alone.
    """

    name: str
    bits: int
    dtype: torch.dtype
    convert: Callable[[nn.Module], nn.Module]
    peer: str | None = None
    whole_model: bool = True

    @property
    def tolerance(self):
        """How far from float32 the product of random weights may be: the length of the difference over that of it.

        Rounding to nearest in groups of 64 is off by half of this; a wrong product is off by more than 1.
        """
        return {32: 1e-5, 16: 0.01, 8: 0.03, 4: 0.25, 3: 0.5, 2: 0.9}[self.bits]


def replace_layers(model, make):
    """Put make(linear) in the place of each nn.Linear below `model`, one at a time; returns the model."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, make(layer))
    return model


# ---------------------------------------------------------------- without a peer


class NaiveInt8(nn.Module):
    """The layer that a course begins with: cast the integers, multiply, scale. One scale a row."""

    def __init__(self, layer):
        super().__init__()
        qtensor = quantize_tensor(layer.weight, Scheme(bits=8))
        self.values, self.scale, self.bias = qtensor.values, qtensor.scale.flatten(), layer.bias

    def forward(self, x):
        y = matmul(x, self.values.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


class NaivePacked(nn.Module):
    """Unpack and dequantize the whole weight, then multiply: the plain formula of a packed layer."""

    def __init__(self, layer, bits):
        super().__init__()
        self.layer = QLinear.from_linear(layer, Scheme(bits=bits, symmetric=False, group_size=GROUP))

    def forward(self, x):
        return matmul(x, self.layer.weight.to(x.dtype), self.layer.bias)


def qlib(bits, dtype):
    """QLinear: a scale a row at 8 bits, groups with zero points below."""
    scheme = Scheme(bits=8) if bits == 8 else Scheme(bits=bits, symmetric=False, group_size=GROUP)

    return lambda model: replace_layers(model, lambda layer: QLinear.from_linear(layer, scheme)).to(dtype)


def dynamic(model):
    """PyTorch's dynamic quantization: weights and activations int8, the range of each activation found anew."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8, inplace=True)


# ---------------------------------------------------------------- peers


def quanto(weights, dtype):
    def convert(model):
        from optimum.quanto import freeze, quantize

        model = model.to(dtype)
        quantize(model, weights=weights)
        freeze(model)
        return model

    return convert


def torchao(config, dtype):
    """`config`: function of the package's modules that gives one of its configurations."""

    def convert(model):
        from torchao.prototype.quantization import int4
        from torchao.quantization import quant_api

        model = model.to(dtype)
        quant_api.quantize_(model, config(quant_api, int4))
        return model

    return convert


def bitsandbytes_int8(model):
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    def make(layer):
        new = Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
        new.weight, new.bias = Int8Params(layer.weight.detach(), requires_grad=False), layer.bias
        return new.to("cpu")  # which quantizes

    return replace_layers(model, make)


def bitsandbytes_nf4(dtype):
    def convert(model):
        from bitsandbytes.nn import Linear4bit, Params4bit

        def make(layer):
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            new = Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
            weight = Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", blocksize=GROUP)
            new.weight, new.bias = weight, layer.bias
            return new.to("cpu")  # which quantizes

        return replace_layers(model.to(dtype), make)

    return convert


class OnnxLayer(nn.Module):
    """onnxruntime's MatMulNBits as a layer.

    Its accuracy level 1 multiplies float32 activations; level 4, its fastest, rounds them to int8 first.
    """

    def __init__(self, layer, bits, accuracy_level):
        super().__init__()
        self.bias = layer.bias
        self.start(onnx_matmul(layer.weight.detach(), bits, accuracy_level))

    def start(self, model):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would spin beside the others
        self.model = model
        self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

    def __deepcopy__(self, memo):
        """A layer with a session, and so with packed weights, of its own."""
        new = OnnxLayer.__new__(OnnxLayer)
        nn.Module.__init__(new)
        new.bias = self.bias
        new.start(self.model)
        return new

    def forward(self, x):
        y = torch.from_numpy(self.session.run(None, {"x": x.numpy()})[0])
        return y if self.bias is None else y + self.bias


def onnx_matmul(weight, bits, accuracy_level):
    """The bytes of an ONNX model that multiplies (batch, inputs) with a weight of shape (outputs, inputs)."""
    import numpy as np
    import onnxruntime.capi._pybind_state as state
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    packed = np.zeros((outputs, groups, GROUP * bits // 8), np.uint8)
    scale = np.zeros((outputs, groups), np.float32)
    zero_point = np.zeros((outputs, -(-groups * bits // 8)), np.uint8)
    columns = np.ascontiguousarray(weight.T.numpy())
    quantize = getattr(state, f"quantize_matmul_{bits}bits")
    quantize(packed, columns, scale, zero_point, GROUP, outputs, inputs, False)
    parts = {"packed": packed, "scale": scale, "zero_point": zero_point}
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": GROUP, "accuracy_level": accuracy_level}
    node = helper.make_node("MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(part, name) for name, part in parts.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def onnxruntime(bits, accuracy_level):
    return lambda model: replace_layers(model, lambda layer: OnnxLayer(layer, bits, accuracy_level))


# ---------------------------------------------------------------- all of them

F32, BF16 = torch.float32, torch.bfloat16

WAYS = [
    Way("float32", 32, F32, lambda model: model),
    Way("bfloat16", 16, BF16, lambda model: model.to(BF16)),
    Way("naive 8-bit", 8, F32, lambda model: replace_layers(model, NaiveInt8)),
    Way("naive 4-bit", 4, F32, lambda model: replace_layers(model, lambda layer: NaivePacked(layer, 4))),
    *[Way(f"qlib {bits}-bit", bits, F32, qlib(bits, F32)) for bits in (8, 4, 3, 2)],
    *[Way(f"qlib {bits}-bit, bfloat16", bits, BF16, qlib(bits, BF16)) for bits in (8, 4, 3, 2)],
    Way("PyTorch dynamic int8", 8, F32, dynamic),
    Way("quanto int8", 8, F32, quanto("qint8", F32), "optimum-quanto"),
    *[
        Way(f"quanto int{bits}, bfloat16", bits, BF16, quanto(f"qint{bits}", BF16), "optimum-quanto")
        for bits in (8, 4, 2)
    ],
    Way("torchao int8", 8, F32, torchao(lambda api, int4: api.Int8WeightOnlyConfig(), F32), "torchao"),
    Way("torchao int8, bfloat16", 8, BF16, torchao(lambda api, int4: api.Int8WeightOnlyConfig(), BF16), "torchao"),
    Way(
        "torchao W8A8, bfloat16",
        8,
        BF16,
        torchao(lambda api, int4: api.Int8DynamicActivationInt8WeightConfig(), BF16),
        "torchao",
    ),
    Way(
        "torchao int4, bfloat16",
        4,
        BF16,
        torchao(lambda api, int4: int4.PrototypeInt4WeightOnlyConfig(group_size=GROUP), BF16),
        "torchao",
    ),
    Way("bitsandbytes int8", 8, F32, bitsandbytes_int8, "bitsandbytes"),
    Way("bitsandbytes NF4", 4, F32, bitsandbytes_nf4(F32), "bitsandbytes"),
    Way("bitsandbytes NF4, bfloat16", 4, BF16, bitsandbytes_nf4(BF16), "bitsandbytes"),
    *[
        Way(f"onnxruntime {bits}-bit{name}", bits, F32, onnxruntime(bits, level), "onnxruntime", whole_model=False)
        for level, name in ((1, ""), (4, ", int8 activations"))
        for bits in (8, 4, 2)
    ],
]
