"""The kinds of layers that quantizing leaves in a model, and what config.json says of each.

A layer's entry is its kind and all that it takes to build it without a file: its scheme, and the few settings that are
neither tensors nor sizes. The entry of a QLinear, by far the most frequent, is its scheme alone and names no kind.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import torch

from qlib.linear import QLinear, weight_of
from qlib.methods.llm_int8 import Int8Linear, check_scheme
from qlib.methods.nf4 import NF4, NF4Linear, nf4_quantize
from qlib.methods.rescale import DividedInput
from qlib.model import empty_layer
from qlib.scheme import Scheme
from qlib.tensor import quantize_tensor

ZERO_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.int8, torch.float16, torch.bfloat16, torch.float32)}

# ---------------------------------------------------------------- from a layer to its entry, and back


def qlinear_settings(layer):
    """The scheme, and the dtype of zero points that are fractions, as HQQ's are."""
    settings = dataclasses.asdict(layer.scheme)
    if layer.zero_point is not None and layer.zero_point.is_floating_point():
        settings["zero_dtype"] = str(layer.zero_point.dtype).removeprefix("torch.")
    return settings


def empty_qlinear(zero_dtype="int8", **scheme):
    scheme = Scheme(**scheme)
    if zero_dtype not in ZERO_DTYPES:
        raise ValueError(f"zero_dtype must be one of {', '.join(ZERO_DTYPES)}, not {zero_dtype!r}")

    def empty(linear, name):
        layer = empty_layer(QLinear, scheme, linear, name)
        if layer.zero_point is not None:
            layer.zero_point = layer.zero_point.to(ZERO_DTYPES[zero_dtype])
        return layer

    return empty


def int8_settings(layer):
    """A QLinear's, and those of `llm_int8_model`; JSON has no infinity, so no threshold at all is null."""
    threshold = None if layer.threshold == math.inf else layer.threshold
    return qlinear_settings(layer) | {"threshold": threshold, "per_token": layer.per_token}


def empty_int8(threshold, per_token, zero_dtype="int8", **scheme):
    check_scheme(Scheme(**scheme))
    threshold = math.inf if threshold is None else threshold
    if type(threshold) not in (int, float) or type(per_token) is not bool:
        raise TypeError(f"threshold must be a number or null, per_token a bool, not {threshold!r} and {per_token!r}")
    empty = empty_qlinear(zero_dtype, **scheme)
    return lambda linear, name: Int8Linear.from_qlinear(empty(linear, name), threshold, per_token)


def nf4_settings(layer):
    return dataclasses.asdict(layer.scheme)


def empty_nf4(**scheme):
    return functools.partial(empty_layer, NF4Linear, NF4(**scheme))


def divided_settings(_):
    """Nothing more: the layer inside has an entry of its own, if it is quantized."""
    return {}


def empty_divided():
    def empty(linear, name):
        return DividedInput(linear, torch.ones(weight_of(linear, name).shape[1], device=linear.weight.device))

    return empty


class Kind(NamedTuple):
    """A kind of layer.

    Args:
        layer: its class.
        settings: settings(layer) is what its entry says, the kind itself aside.
        empty: empty(**settings) gives what makes such a layer, for a file to fill, of (float layer, its name); it
            raises TypeError or ValueError for settings that make no sense.
    """

    layer: type
    settings: object
    empty: object


PLAIN = "qlinear"
# A layer is of the first kind that fits.
KINDS = {
    "divided_input": Kind(DividedInput, divided_settings, empty_divided),
    "nf4": Kind(NF4Linear, nf4_settings, empty_nf4),
    "llm_int8": Kind(Int8Linear, int8_settings, empty_int8),
    PLAIN: Kind(QLinear, qlinear_settings, empty_qlinear),
}

# What quantizes one weight as a scheme says, and the layer that keeps it.
BY_SCHEME = {Scheme: (quantize_tensor, QLinear), NF4: (nf4_quantize, NF4Linear)}

# ---------------------------------------------------------------- all layers of a model


def kind_of(module):
    """The kind of layer that a module is, or None."""
    return next((name for name, kind in KINDS.items() if isinstance(module, kind.layer)), None)


def entry_of(layer):
    """What config.json says of a layer of one of the kinds."""
    kind = kind_of(layer)
    return ({} if kind == PLAIN else {"kind": kind}) | KINDS[kind].settings(layer)


def entries_of(model):
    """{name of a layer: its entry}, of all layers of a model that are of one of the kinds."""
    return {name: entry_of(module) for name, module in model.named_modules() if kind_of(module)}


def empty_layers(entries, origin):
    """{name of a layer: what makes it empty, of (float layer, its name)}, for `replace_layers`.

    Args:
        entries: {name of a layer: its entry}.
        origin: what error messages call the place where they stand.

    Raises:
        ValueError: an entry is of an unknown kind, or makes no sense; the message names `origin` and the layer.
    """
    empties, name = {}, "layers"
    try:
        for name, entry in entries.items():
            settings = dict(entry)
            kind = settings.pop("kind", PLAIN)
            if kind not in KINDS:
                raise ValueError(f"its kind is {kind!r}, which this qlib does not know; it knows {', '.join(KINDS)}")
            empties[name] = KINDS[kind].empty(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: layer {name!r}: {error}") from None
    return empties


def quantizer_for(scheme):
    """(function that quantizes one weight, class of the layer that keeps it) for a Scheme or an NF4; else TypeError."""
    if type(scheme) not in BY_SCHEME:
        raise TypeError(f"scheme must be a qlib.Scheme, such as Scheme(bits=8), or an NF4, not {scheme!r}")
    return BY_SCHEME[type(scheme)]
