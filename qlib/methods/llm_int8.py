"""LLM.int8(): multiply 8-bit integers, except in the few columns of the input that hold outliers.

Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (arXiv:2208.07339), section 3.
"""

from qlib.affine import quantize, symmetric_qparams
from qlib.linear import QLinear
from qlib.model import places_of, quantize_model, set_submodule
from qlib.scheme import INT8


class Int8Linear(QLinear):
    """A linear layer that quantizes its input too, but for outlier columns (section 3.2, equation 8).

    A column is set apart where any token's value reaches the threshold; it is multiplied in float with the layer's
    dequantized weight. All other columns meet as integers: the weight with a scale a row, the input with a scale a
    token (section 3.1), and their exact sums are scaled afterwards. With an infinite threshold this is plain W8A8.

    The paper keeps the weights of outlier columns in float as well. Which columns those are shows only with the
    input, so that would need the whole weight in float; its authors' library dequantizes as this layer does.

    The layer keeps the tensors that a QLinear keeps. Its two settings are saved in config.json.
    """

    threshold, per_token = 6.0, True

    @classmethod
    def from_qlinear(cls, layer, threshold=6.0, per_token=True):
        """An Int8Linear on a QLinear's own buffers; threshold and per_token as for `llm_int8_model`.

        Raises:
            ValueError: see `check_scheme`.
        """
        check_scheme(layer.scheme)
        new = cls.from_qtensor(layer.qtensor, layer.bias).train(layer.training)
        new.threshold, new.per_token = threshold, per_token
        return new

    def forward(self, x):
        """x: (..., in_features) of a floating dtype; returns (..., out_features) of the same dtype."""
        rows = x.reshape(-1, x.shape[-1]).float()
        out = mixed_matmul(rows, self.qtensor, self.threshold, self.per_token)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self):
        return f"{super().extra_repr().replace('A16', 'A8')}, outliers from {self.threshold}"


def mixed_matmul(x, qtensor, threshold=6.0, per_token=True):
    """x @ weight.T: the columns of x that hold an outlier multiplied in float, all others as integers.

    Args:
        x: float32, (tokens, inputs).
        qtensor: a QTensor of the weight, (outputs, inputs), per row or per tensor.
        threshold: magnitude from which on a value is an outlier.
        per_token: see `integer_part`.

    Returns:
        float32, (tokens, outputs).
    """
    outlier = (x.abs() >= threshold).any(0)
    out = integer_part(x.masked_fill(outlier, 0.0), qtensor, per_token)
    return out + x[:, outlier] @ qtensor.dequantize()[:, outlier].T


def integer_part(x, qtensor, per_token=True):
    """x @ weight.T in integers: a scale for each row of x or for all, those of the weight, and exact sums between them.

    The sums are done in float64, which holds each of them exactly and which matrix libraries are fast at.

    Args:
        x: float32, (tokens, inputs).
        qtensor: a QTensor of the weight, (outputs, inputs), per row or per tensor.
        per_token: whether each row of x has a scale of its own.

    Returns:
        float32, (tokens, outputs).
    """
    reach = x.abs().amax(-1, keepdim=True)
    if not per_token and len(x):
        reach = reach.amax()
    x_scale, zero = symmetric_qparams(reach, 8)
    x_values = quantize(x, x_scale, zero, 8)
    sums = x_values.double() @ (qtensor.values.double() - qtensor.zero_point).T
    return sums.float() * (x_scale * qtensor.scale.reshape(1, -1))


def llm_int8_model(model, scheme=INT8, threshold=6.0, ignore=("lm_head",), per_token=True):
    """Quantize a model's linear layers for LLM.int8(), in place; layers that are a QLinear already become Int8Linear.

    Args:
        model, scheme, ignore: as for `qlib.quantize_model`; the scheme per row or per tensor.
        threshold: magnitude from which on a value of the input is an outlier; math.inf for plain W8A8.
        per_token: whether each token has a scale of its own, or one scale serves a layer's whole input.

    Returns:
        a Report.

    Raises:
        ValueError: the scheme has a scale per column or group, or a QLinear of the model has.
    """
    before = {name: layer for name, layer in model.named_modules() if isinstance(layer, QLinear)}
    for checked in (scheme, *(layer.scheme for layer in before.values())):
        check_scheme(checked)
    report = quantize_model(model, scheme, ignore)
    places = places_of(model)
    for name in [*before, *(layer.name for layer in report.quantized)]:
        replacement = Int8Linear.from_qlinear(model.get_submodule(name), threshold, per_token)
        for place in places[name]:
            set_submodule(model, place, replacement)
    return report


def check_scheme(scheme):
    """Raise ValueError for a scale per column or group: it differs between summands, so no integer sum can bear it."""
    if scheme.axis == 1 or scheme.group_size is not None:
        raise ValueError(f"an integer sum needs one scale for all the inputs of a row, not one {scheme.granularity}")
