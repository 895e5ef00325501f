"""What the methods that look at data share: the inputs that reach a model's layers, and what errors cost on them.

Calibration data goes through the model once, as one batch. Each layer is met when its turn comes, with all that
reaches it, so that never more than one layer's statistics are in memory.
"""

import collections.abc
import functools
import warnings

import torch

from qlib.console import progress_bar
from qlib.linear import QLinear
from qlib.model import choose_layers, layers_to_quantize, quantize_model


def run_batch(model, batch):
    """Run a model without gradients on a batch: a tensor, or {name: tensor} as a tokenizer of transformers gives it."""
    with torch.no_grad():
        return model(**batch) if isinstance(batch, collections.abc.Mapping) else model(batch)


def visit_layers(model, batch, names, visit, label="calibrating"):
    """Run a model once, and call `visit(name, layer, x)` for each named layer when it is first called.

    Args:
        model: a torch.nn.Module in evaluation mode; it stays as it is.
        batch: see `run_batch`.
        names: of linear layers.
        visit: gets a layer and its inputs x, (tokens, in_features), padding left out. If it returns a layer, that one
            does the work of the visited in the rest of the run: the layers after it see what it gives them.
        label: of the progress bar.

    Returns:
        {name: what `visit` returned}; a layer that the batch does not reach is not in it.

    Raises:
        ValueError: an input holds a NaN or an infinity; the message names the layer.
    """
    visited, steps = {}, iter(progress_bar(names, label))

    def hook(name, layer, inputs, _):
        if name not in visited:
            x = tokens_of(inputs[0].detach(), batch)
            if not torch.isfinite(x).all():
                raise ValueError(f"the input of layer {name!r} holds a NaN or an infinity; it cannot be calibrated")
            next(steps, None)
            visited[name] = visit(name, layer, x)
        return None if visited[name] is None else visited[name](inputs[0])

    hooks = [model.get_submodule(name).register_forward_hook(functools.partial(hook, name)) for name in names]
    try:
        run_batch(model, batch)
    finally:
        steps.close()
        for handle in hooks:
            handle.remove()
    return visited


def tokens_of(x, batch):
    """The input of a layer as (tokens, features), without the padding that the batch's attention mask tells of."""
    mask = batch.get("attention_mask") if isinstance(batch, collections.abc.Mapping) else None
    if mask is not None and mask.shape == x.shape[:-1]:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


def quantize_as_it_runs(model, scheme, calibration, ignore, make_qtensor, label):
    """Quantize a model's linear layers one after the other, each on inputs from the layers that are quantized already.

    Args:
        model, scheme, ignore: as for `qlib.quantize_model`. The model is changed at the very end, or not at all.
        calibration: see `run_batch`; a layer that it does not reach is rounded, with a warning.
        make_qtensor: makes a QTensor of (name, layer, x), x of shape (tokens, in_features).
        label: of the progress bar.

    Returns:
        a Report.
    """

    def visit(name, layer, x):
        qtensor, dtype = make_qtensor(name, layer, x), layer.weight.dtype
        return QLinear.from_qtensor(qtensor, layer.bias, dtype=dtype).train(layer.training)

    def quantize_layer(layer, scheme, name):
        if name not in made:
            warnings.warn(f"no calibration data reached layer {name!r}: it is rounded", stacklevel=4)
        return made.get(name) or QLinear.from_linear(layer, scheme, name)

    made = visit_layers(model, calibration, choose_layers(model, ignore)[0], visit, label)
    return quantize_model(model, scheme, ignore, progress=False, quantize_layer=quantize_layer)


def channel_magnitudes(model, batch, ignore=()):
    """The largest magnitude in each channel of the inputs of a model's linear layers: where outliers show.

    Returns:
        {name of a layer: float32 of shape (in_features,)}, in the order in which the layers are called.
    """
    names = layers_to_quantize(model, ignore)
    found = {}
    visit_layers(model, batch, names, lambda name, _, x: found.update({name: x.float().abs().amax(0)}))
    return found


def hessian(x):
    """The mean of x xᵀ over the tokens: what errors in a weight cost, up to a factor that no method here depends on.

    Args:
        x: (tokens, in_features), the inputs of a layer.

    Returns:
        float64, (in_features, in_features): symmetric, positive semi-definite.
    """
    x = x.float()
    return (x.T @ x).double() / max(len(x), 1)


def output_errors(weight, other, hessian):
    """The mean squared error of each output of a layer when `other` takes the place of its `weight`.

    With E = other - weight, the mean of (E x)² over the calibration tokens is E H Eᵀ: the tokens are not needed.

    Args:
        weight, other: (rows, columns).
        hessian: (columns, columns), of the layer's inputs; see `hessian`.

    Returns:
        float64, (rows,).
    """
    errors = other.double() - weight.double()
    return ((errors @ hessian) * errors).sum(-1)
