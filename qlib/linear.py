"""Quantized layers: QLinear, the one linear layer for every scheme, and QEmbedding, an embedding kept like it.

With float activations a QLinear is weight-only (W8A16 and its kin); with int8 ones it multiplies small integers, by the
arithmetic of Jacob et al. 2018 (arXiv:1712.05877), section 2.
"""

import collections
import copy
import inspect

import torch

from qlib.affine import choose_qparams, dequantize, expand_groups, quant_range, quantize
from qlib.grids import decode
from qlib.kernels import choose as kernels
from qlib.packing import unpack
from qlib.read_only import READ_ONLY, ReadOnlyWeight
from qlib.scheme import Scheme, whole_number
from qlib.tensor import QTensor, part_dtypes, part_shapes, quantize_tensor, values_of

# Of what dtypes a weight may be that is quantized.
WEIGHT_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
# Zero points that are fractions, as HQQ's are, have a dtype that config.json names.
ZERO_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.int8, torch.float16, torch.bfloat16, torch.float32)}

# ---------------------------------------------------------------- layers


class PackedLayer(torch.nn.Module):
    """A layer that keeps a matrix as a QTensor's parts, (rows, columns).

    They are buffers and no Parameters: integers have no gradient, and an optimizer must not touch them. The scales keep
    their dtype when the model is moved to half precision, where a small one would become zero. What has the dtype of
    the model is `example`, a Parameter of no elements: it is moved, saved and loaded as a weight would be, and says in
    which dtype `weight` is read.

    In a state dict an empty tensor stands in the place of the float weight, too. Whatever loads the file as that of a
    float model, as transformers does where nobody has imported qlib.hf, then fails on its shape, instead of going on
    with random weights.
    """

    _is_hf_initialized = True  # what transformers asks before it initializes a layer: this one is filled from a file

    def __init__(self, rows, columns, scheme, device=None, dtype=None):
        torch.nn.Module.__init__(self)  # and not the class's of a float layer, which would make a weight
        self.set_example(dtype, device)
        self.scheme, self.weight_shape = scheme, (rows, columns)
        shapes = part_shapes(self.weight_shape, scheme)
        for part, dtype in part_dtypes(scheme).items():
            # Whatever the default dtype: transformers changes it while it builds a model, and casts what it reads.
            self.register_buffer(part, torch.zeros(shapes[part], dtype=dtype, device=device))
        if scheme.symmetric:
            self.register_buffer("zero_point", None)

    @property
    def qtensor(self):
        """The weight as a QTensor, on the layer's own buffers."""
        return QTensor.from_parts(self._buffers, self.scheme, self.weight_shape)

    @qtensor.setter
    def qtensor(self, qtensor):
        self.scheme, self.weight_shape = qtensor.scheme, tuple(qtensor.shape)
        self.set_example(self.example.dtype, qtensor.packed.device)
        for part, values in qtensor.parts.items():
            setattr(self, part, values)

    @property
    def weight(self):
        """The real numbers of the weight in the model's dtype, made anew at each call: for code that looks at it.

        T5, Mamba and others read a layer's dtype or its numbers so. Nobody can write to it: see ReadOnlyWeight.
        """
        weight = self.qtensor.dequantize().to(self.example.dtype)
        if type(weight) is not torch.Tensor or torch.compiler.is_compiling():
            return weight
        return weight.as_subclass(ReadOnlyWeight)

    @weight.setter
    def weight(self, _):
        raise ValueError(READ_ONLY)

    def register_parameter(self, name, param):
        """As for any module; ValueError for a weight, which would hide the packed one."""
        if name == "weight":
            raise ValueError(READ_ONLY)
        super().register_parameter(name, param)

    def set_example(self, dtype, device):
        """Say of which dtype the float weight is, by a tensor of no elements on the device of the layer.

        It is never on the meta device: there is nothing to be read for it.
        """
        device = None if device is None or torch.device(device).type == "meta" else device
        with torch.device("cpu"):  # transformers makes all on the meta device while it builds a model
            self.example = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)

    def named_parameters(self, prefix="", recurse=True, remove_duplicate=True):
        """As for any module, but `example` is none of the layer's very own: accelerate would look for it in files."""
        return super().named_parameters(prefix, True, remove_duplicate) if recurse else iter(())

    def settings(self):
        """What config.json says of the weight: its scheme, and the dtype of zero points that are fractions."""
        settings = self.scheme.settings()
        if self.zero_point is not None and self.zero_point.is_floating_point():
            settings["zero_dtype"] = str(self.zero_point.dtype).removeprefix("torch.")
        return settings

    def make_room(self, zero_dtype):
        """Make the zero points of a layer that is still empty fractions of a dtype, by its name in config.json."""
        if zero_dtype not in ZERO_DTYPES:
            raise ValueError(f"zero_dtype must be one of {', '.join(ZERO_DTYPES)}, not {zero_dtype!r}")
        if self.zero_point is not None:
            self.zero_point = self.zero_point.to(ZERO_DTYPES[zero_dtype])
        return self

    def _apply(self, fn, recurse=True):
        """Follow the model to another device or dtype, but keep the dtypes of the scales and the zero points."""
        before = {name: buffer for name, buffer in self._buffers.items() if name != "bias"}
        super()._apply(fn, recurse)
        keep_dtypes(self, before)
        if self.example.is_meta:
            self.set_example(self.example.dtype, None)
        return self

    def float_name(self, prefix):
        """The name of the float weight, of a layer whose own tensors' names begin with `prefix`."""
        return f"{prefix}weight"

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed.is_meta:  # it waits for a file, which need not hold the empty ones
            destination.pop(f"{prefix}example", None)
        else:
            destination[self.float_name(prefix)] = self.example.detach()

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        """Make room for zero points that are fractions: copied into integers they would be cut off.

        The first versions knew no `example`; that of the layer then stays as it is.
        """
        if state_dict.get(self.float_name(prefix), torch.ones(1)).numel() == 0:
            del state_dict[self.float_name(prefix)]
        state_dict.setdefault(f"{prefix}example", torch.empty_like(self.example, device="cpu"))
        zero_point = state_dict.get(f"{prefix}zero_point")
        if self.zero_point is not None and zero_point is not None and zero_point.is_floating_point():
            self.zero_point = self.zero_point.to(zero_point.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def weight_repr(self):
        """What there is to say of the weight: "4-bit asymmetric, per group of 64, 4.625 bits per weight"."""
        fractions = ""
        if self.zero_point is not None and self.zero_point.is_floating_point():
            fractions = f"{str(self.zero_point.dtype).removeprefix('torch.')} zero points, "
        return f"{self.scheme}, {fractions}{self.qtensor.bits_per_weight:.3f} bits per weight"


class QLinear(PackedLayer, torch.nn.Linear):
    """A linear layer that keeps its weight as packed codes.

    It computes in its input's dtype (W8A16 and its kin), or, with `activation_bits`, on integers made of its input;
    under autocast in the dtype that torch.nn.Linear would take. It is an nn.Linear for code that looks for one, such as
    peft's.

    Args:
        in_features, out_features: as for torch.nn.Linear.
        scheme: of the weight, of shape (out_features, in_features).
        bias: whether there is one.
        device: where the buffers are made; they are filled by `from_linear` or `load_state_dict`.
        activation_bits: None for float activations; 8 for int8 ones, with a scale for each token, or for each token and
            group where the weight has groups (dynamic quantization): see `integer_part`.
        dtype: of the bias, and of `weight` when it is read.

    Raises:
        ValueError: integers were asked for that the scheme or the width does not allow.
    """

    def __init__(self, in_features, out_features, scheme, bias=True, device=None, activation_bits=None, dtype=None):
        super().__init__(out_features, in_features, scheme, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)
        self.plan = kernels.plan_for(scheme, in_features)
        self.set_activations(activation_bits)

    def set_activations(self, bits, outlier_threshold=None, per_token=True):
        """Say what the layer multiplies.

        Args:
            bits: None for floats, 8 for int8.
            outlier_threshold: with int8, the magnitude from which a column of the input stays in float (LLM.int8()).
            per_token: with int8, whether each token has scales of its own, or one scale serves the whole input.
        """
        bits = whole_number(bits)
        if bits is not None and (type(bits) is not int or bits != 8):
            raise ValueError(f"activation_bits must be 8, or None for floats, not {bits!r}")
        if type(outlier_threshold) not in (int, float, type(None)) or type(per_token) is not bool:
            raise TypeError(
                "outlier_threshold must be a number or None, per_token True or False, not "
                f"{outlier_threshold!r} and {per_token!r}"
            )
        if bits is not None and self.scheme.axis == 1:
            raise ValueError("an integer sum needs one scale for all the inputs of a row, not one per column")
        self.activation_bits, self.outlier_threshold, self.per_token = bits, outlier_threshold, per_token

    @classmethod
    def from_linear(cls, linear, scheme, name=None, activation_bits=None):
        """Quantize a layer.

        Args:
            linear: a torch.nn.Linear, or transformers' Conv1D, whose weight lies transposed.
            scheme: a Scheme.
            name: what error messages call the layer.
            activation_bits: as for QLinear.

        Raises:
            TypeError, ValueError: the layer is of another kind or computes something else, or its weight cannot be
                quantized.
        """
        name = name or type(linear).__name__
        weight, more = weight_of(linear, name), more_than_linear(linear)
        if more:
            raise TypeError(f"{name} is {more}, which a QLinear would not do")
        qtensor = quantize_tensor(weight, scheme, f"{name}.weight")
        return cls.from_qtensor(qtensor, linear.bias, activation_bits, weight.dtype).train(linear.training)

    @classmethod
    def from_qtensor(cls, qtensor, bias=None, activation_bits=None, dtype=None):
        """A layer on a weight that is quantized already, by whatever method; it shares the weight's memory.

        Args:
            qtensor: a QTensor of shape (out_features, in_features).
            bias: (out_features,) or None; it is copied.
            activation_bits: as for QLinear.
            dtype: of the float weight; by default that of the bias, or float32.
        """
        outputs, inputs = qtensor.shape
        dtype = dtype or (torch.float32 if bias is None else bias.dtype)
        layer = cls(inputs, outputs, qtensor.scheme, False, "meta", activation_bits)
        layer.qtensor = qtensor
        layer.set_example(dtype, qtensor.packed.device)
        layer.bias = None if bias is None else bias.detach().clone()
        return layer

    @classmethod
    def empty(
        cls, linear, name, zero_dtype="int8", activation_bits=None, outlier_threshold=None, per_token=True, **scheme
    ):
        """A layer for a file to fill, in the place of a float one: its sizes, bias and device, and `settings`."""
        weight = weight_of(linear, name)
        has_bias, like = linear.bias is not None, {"device": weight.device, "dtype": weight.dtype}
        layer = cls(*reversed(weight.shape), Scheme(**scheme), has_bias, **like)
        layer.set_activations(activation_bits, outlier_threshold, per_token)
        return layer.make_room(zero_dtype)

    def settings(self):
        """What config.json says of the layer: the weight's settings, and those of int8 activations."""
        settings = super().settings()
        if self.activation_bits is not None:
            settings["activation_bits"] = self.activation_bits
        if self.outlier_threshold is not None:
            settings["outlier_threshold"] = self.outlier_threshold
        return settings if self.per_token else settings | {"per_token": False}

    def forward(self, input):
        """input: (..., in_features) of a floating dtype; returns (..., out_features) of the same dtype."""
        if any_autocast() and autocasts(input.device.type):
            return self.autocast_forward(input)
        if self.activation_bits is not None:
            return self.integer_forward(input)
        kept = self._buffers  # to ask the module for each takes as long as the arithmetic of a small layer
        parts = (kept["packed"], kept["scale"], kept["zero_point"], kept["bias"])
        if self.plan is not None and kernels.fits(input, *parts, self.in_features, self.plan):
            out = kernels.linear(input, *parts, self.plan)
            if out is not None:
                return out
        return plain_linear(input, self.qtensor, kept["bias"])

    def autocast_forward(self, x):
        """`forward` in the dtype of autocast, but with no step on the way in fewer bits than without it."""
        device = x.device.type
        with torch.autocast(device, enabled=False):
            return self.forward(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(device)))

    def integer_forward(self, x):
        """`forward` on integers; rows that hold an infinity or a NaN have no scale, and are multiplied as they are."""
        rows = x.reshape(-1, x.shape[-1]).float()
        finite = rows.isfinite().all(1)
        if finite.all():
            out = self.integer_product(rows)
        else:
            out = torch.nn.functional.linear(rows, self.qtensor.dequantize())
            out[finite] = self.integer_product(rows[finite])
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def integer_product(self, rows):
        if self.outlier_threshold is None:
            return integer_part(rows, self.qtensor, self.per_token)
        return mixed_matmul(rows, self.qtensor, self.outlier_threshold, self.per_token)

    def extra_repr(self):
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        widths = f"W{self.scheme.bits}A{self.activation_bits or 16}"
        outliers = "" if self.outlier_threshold is None else f", outliers from {self.outlier_threshold}"
        return f"{sizes}, {widths}, {self.weight_repr()}{outliers}"


any_autocast = torch._C._is_any_autocast_enabled  # to ask it of one device takes a microsecond


def autocasts(device):
    """Whether autocast is on for a device, such as "cpu"; PyTorch takes no question about "meta"."""
    return device != "meta" and torch.is_autocast_enabled(device)


class QEmbedding(PackedLayer):
    """An embedding that keeps its table as packed codes, and makes real the rows that are asked for.

    Args:
        num_embeddings, embedding_dim, padding_idx: as for torch.nn.Embedding.
        scheme: of the table, of shape (num_embeddings, embedding_dim).
        dtype: of what it returns, that of the float embedding.
        device: where the buffers are made.
    """

    def __init__(self, num_embeddings, embedding_dim, scheme, padding_idx=None, dtype=torch.float32, device=None):
        super().__init__(num_embeddings, embedding_dim, scheme, device, dtype)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    @classmethod
    def from_embedding(cls, embedding, scheme, name=None):
        """Quantize a torch.nn.Embedding; raises what `quantize_tensor` raises."""
        qtensor = quantize_tensor(embedding.weight, scheme, f"{name or type(embedding).__name__}.weight")
        return cls.from_qtensor(qtensor, embedding)

    @classmethod
    def from_qtensor(cls, qtensor, embedding):
        """A layer on a table that is quantized already, whose memory it shares, for a torch.nn.Embedding."""
        layer = cls(*qtensor.shape, qtensor.scheme, embedding.padding_idx, device="meta")
        layer.qtensor = qtensor
        layer.set_example(embedding.weight.dtype, qtensor.packed.device)
        return layer.train(embedding.training)

    @classmethod
    def empty(cls, embedding, name, zero_dtype="int8", **scheme):
        """An embedding for a file to fill, in the place of a float one."""
        weight = embedding.weight
        layer = cls(*weight.shape, Scheme(**scheme), embedding.padding_idx, weight.dtype, weight.device)
        return layer.make_room(zero_dtype)

    def forward(self, input):
        """input: integers (...); returns (..., embedding_dim), in the dtype of the float embedding."""
        rows, table, scheme = input.reshape(-1), self.qtensor, self.scheme
        values = values_of(unpack(table.packed[rows], scheme.bits, self.embedding_dim), scheme)
        qparams = (part[rows] if scheme.axis == 0 and part.ndim else part for part in (table.scale, table.zero_point))
        return decode(values, *qparams, scheme).to(self.example.dtype).reshape(*input.shape, self.embedding_dim)

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.weight_repr()}"


# ---------------------------------------------------------------- the plain formulas


def plain_linear(x, qtensor, bias=None):
    """The formula that all the others are measured against: unpack the weight, dequantize it, multiply.

    It works on any device, for any scheme, dtype and shape, under autograd and while a model is traced; the whole
    weight is in memory for as long as it takes.

    Args:
        x: (..., inputs), of a floating dtype.
        qtensor: a QTensor of the weight, (outputs, inputs).
        bias: (outputs,) or None.

    Returns:
        (..., outputs), of the dtype of x.
    """
    weight = qtensor.dequantize().to(x.dtype)
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def packed_linear(x, packed, scale, zero_point, bits, group_size, bias=None):
    """A linear layer on packed weights: unpack them, turn them into real numbers, multiply.

    It is `plain_linear` for a weight in groups, spelt out; nothing that was unpacked is there any more when it returns.

    Args:
        x: (..., inputs), of a floating dtype.
        packed: uint8, (outputs, ceil(inputs * bits / 8)): codes that count from the smallest integer, low bits first.
        scale: float32, (outputs, groups).
        zero_point: integers of the shape of `scale`.
        bits: width of a weight, 2 to 8.
        group_size: inputs that share a scale; the last group of a row may be shorter.
        bias: (outputs,) in the dtype of x, or None.

    Returns:
        (..., outputs), in the dtype of x.
    """
    qmin, _ = quant_range(bits)
    values = unpack(packed, bits, x.shape[-1]).to(torch.int16) + qmin
    scale, zero_point = (expand_groups(part, values, group_size) for part in (scale, zero_point))
    weight = dequantize(values, scale, zero_point).to(x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


def mixed_matmul(x, qtensor, threshold=6.0, per_token=True):
    """x @ weight.T: the columns of x that hold an outlier multiplied in float, all others as integers.

    This is LLM.int8(): Dettmers et al. 2022 (arXiv:2208.07339), section 3.2, equation 8. The paper keeps the weights of
    outlier columns in float as well. Which columns those are shows only with the input, so that would need the whole
    weight in float; its authors' library dequantizes as is done here.

    Args:
        x: float32, (tokens, inputs).
        qtensor: a QTensor of the weight, (outputs, inputs), with no scale per column.
        threshold: magnitude from which on a value is an outlier.
        per_token: see `integer_part`.

    Returns:
        float32, (tokens, outputs).
    """
    outlier = (x.abs() >= threshold).any(0)
    out = integer_part(x.masked_fill(outlier, 0.0), qtensor, per_token)
    return out + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def integer_part(x, qtensor, per_token=True):
    """x @ weight.T in integers: int8 values of x times those of the weight, exact sums, and the scales afterwards.

    Where the weight has groups, so has x, and each group has sums and scales of its own. The sums are done in float64,
    which holds each of them exactly and which matrix libraries are fast at: they are those of `integer_linear`. Of
    another grid than the integers the levels are multiplied as they are.

    Args:
        x: float32, (tokens, inputs).
        qtensor: a QTensor of the weight, (outputs, inputs), with no scale per column.
        per_token: whether each token has scales of its own, one or one a group; or one serves all.

    Returns:
        float32, (tokens, outputs).
    """
    group_size = qtensor.scheme.group_size if per_token else None
    x_scale, zero = choose_qparams(x, Scheme(8, axis=0 if per_token else None, group_size=group_size))
    x_values = quantize(x, x_scale, zero, 8, group_size).double()
    scale = qtensor.scale
    w_values = decode(qtensor.values, torch.ones_like(scale), qtensor.zero_point, qtensor.scheme).double()
    width, out = qtensor.scheme.group_size or max(x.shape[1], 1), 0
    for i, first in enumerate(range(0, x.shape[1], width)):
        group = slice(first, first + width)
        sums = (x_values[:, group] @ w_values[:, group].T).float()
        out = out + sums * (column_of(x_scale, i) * column_of(scale, i).reshape(1, -1))
    return out


def column_of(scale, i):
    """The i-th column of the scales of groups; of a scale for each row or for all, that one."""
    return scale[:, i : i + 1] if scale.ndim and scale.shape[1] > 1 else scale


def integer_linear(x, x_zero_point, w, w_zero_point):
    """The sums of (x - x_zero_point) * (w - w_zero_point) over the inputs, with int8 factors and an int32 accumulator.

    The product of the differences is multiplied out, so that only the integers as they are stored meet in the matrix
    product; three corrections, each far smaller than it, take the zero points off.

    Args:
        x: int8, (..., inputs).
        x_zero_point: a whole number, or an int32 tensor that broadcasts against (..., outputs).
        w: int8, (outputs, inputs).
        w_zero_point: a whole number, or an int32 tensor of shape (outputs,).

    Returns:
        int32, (..., outputs). Exact for up to 33,025 inputs, more than any layer of the course has: each product
        of differences is at most 255 * 255.
    """
    x, w = x.to(torch.int32), w.to(torch.int32)
    x_sums = x.sum(-1, keepdim=True, dtype=torch.int32)
    w_sums = w.sum(-1, dtype=torch.int32)
    inputs = x.shape[-1]
    return x @ w.T - x_zero_point * w_sums - w_zero_point * x_sums + inputs * x_zero_point * w_zero_point


# ---------------------------------------------------------------- what the layers share


def keep_dtypes(module, before):
    """Give buffers that were cast the dtypes back that they had, on the device where they are now.

    Args:
        module: a torch.nn.Module.
        before: {name: the buffer as it was, or None}.
    """
    for name, old in before.items():
        new = getattr(module, name)
        if old is not None and new.dtype != old.dtype:
            setattr(module, name, torch.empty_like(old, device=new.device) if old.is_meta else old.to(new.device))


def weight_of(linear, name):
    """The weight of a linear layer as (outputs, inputs); TypeError naming the layer if it is of another kind."""
    if is_float(linear, torch.nn.Linear):
        return linear.weight
    if is_conv1d(linear):
        return linear.weight.T
    raise TypeError(f"{name} is a {type(linear).__name__}; only nn.Linear and transformers' Conv1D can be quantized")


def is_conv1d(layer):
    """Whether a layer is transformers' Conv1D (GPT-2's), told by its name: the core does not import transformers."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers")


def is_float(layer, kinds):
    """Whether a layer is of some kinds and keeps its weight as it is: a QLinear is an nn.Linear, too."""
    return isinstance(layer, kinds) and not isinstance(layer, PackedLayer)


# ---------------------------------------------------------------- what a linear layer does besides


def more_than_linear(layer):
    """What an nn.Linear or a Conv1D is that no QLinear would be, in words: "a Router with ..."; None if nothing."""
    kind = f"a {type(layer).__name__}"
    if "forward" in vars(layer) and not layer.weight.is_meta:  # accelerate wraps that of a layer it has offloaded, too
        return f"{kind} whose forward was replaced"
    more = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias", "parametrizations"}
    if more:
        return f"{kind} that holds more than a weight and a bias: {min(more)}"
    if layer.weight.dtype not in WEIGHT_DTYPES:
        return f"{kind} whose weight is {str(layer.weight.dtype).removeprefix('torch.')} already"
    plain = type(layer).forward is torch.nn.Linear.forward or is_conv1d(layer)
    return None if plain or only_multiplies(layer) else f"{kind} with a forward of its own"


def only_multiplies(layer):
    """Whether the forward of a subclass of nn.Linear is x @ weight.T + bias, written in another way.

    It is tried, on numbers small and large, with a copy of the layer that has a small weight: so the answer is the same
    for a layer on the meta device. What takes or gives more than a tensor, keeps something of what it saw, or fails, is
    something else.
    """
    forward = type(layer).forward
    if len(inspect.signature(forward).parameters) != 2:
        return False
    numbers = torch.linspace(-2, 3, 59, dtype=torch.float64, device="cpu").mul(7).sin()
    weight, bias, x = numbers[:30].reshape(5, 6), numbers[30:35], numbers[35:].reshape(2, 2, 6)
    x = x * torch.tensor([[[1e-3], [1.0]], [[1e3], [1e6]]], dtype=torch.float64, device="cpu")
    bias = None if layer.bias is None else bias
    try:
        copy_of_it = small_copy(layer, weight, bias)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return all(gives(copy_of_it.train(mode), forward, x, weight, bias) for mode in (False, True))
    except Exception:
        return False


def small_copy(layer, weight, bias):
    """A copy of a linear layer, no hooks, with another weight and bias in their place."""
    new = {id(layer.weight): torch.nn.Parameter(weight, requires_grad=False)}
    if bias is not None:
        new[id(layer.bias)] = torch.nn.Parameter(bias, requires_grad=False)
    new |= {id(getattr(layer, hooks)): collections.OrderedDict() for hooks in HOOKS}
    small = copy.deepcopy(layer, new)
    small.out_features, small.in_features = weight.shape
    return small


def gives(layer, forward, x, weight, bias):
    """Whether a layer's forward gives the linear product, and leaves the layer as it was."""
    before = dict(vars(layer))
    out = forward(layer, x.clone())
    expected = torch.nn.functional.linear(x, weight, bias)
    return torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-6) and vars(layer) == before


# Where a module keeps its hooks, and what it knows of them.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def hand_over_hooks(old, new):
    """Let a layer that takes the place of another call its hooks: the very same, so that they can still be removed."""
    for hooks in HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook
