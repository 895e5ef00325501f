"""Moving a factor from the inputs of a layer into its weight: W x = (W s)(x / s), for any s > 0 a channel.

SmoothQuant and AWQ choose s; here is what they share. The division costs nothing at run time where the layer before
can take it: SmoothQuant, section 4 (arXiv:2211.10438), and AWQ, section 3.2 (arXiv:2306.00978). Which layer can take
it is not told by names but found by experiment, so that a model of any kind is changed rightly or not at all.
"""

import collections.abc
import contextlib
import dataclasses

import torch

from qlib.linear import weight_of
from qlib.methods.calibration import channel_magnitudes, run_batch, visit_layers
from qlib.model import is_ignored, is_linear, layers_to_quantize, replace

TRIES = 3  # of the linear layers before an input, how many are asked whether they can take the division


@dataclasses.dataclass(frozen=True)
class SharedInput:
    """Linear layers that read the same tensor, so that they share its scales.

    Args:
        layers: their names.
        source: the norm or linear layer whose own weights can be divided to divide that tensor; None if there is none.
    """

    layers: tuple
    source: str | None

    def __str__(self):
        return f"{', '.join(self.layers)}: {self.source or 'nothing before can take a scale'}"


class DividedInput(torch.nn.Module):
    """A layer whose input is divided, channel by channel, on its way in: for where no layer before can take that.

    It costs a division an input. It is saved and loaded with the layer inside, whether that is quantized or not.

    Args:
        layer: any layer on (..., in_features).
        scale: (in_features,); it is copied, for transformers does not load tensors that layers share unasked.
    """

    def __init__(self, layer, scale):
        super().__init__()
        self.layer = layer
        self.register_buffer("divisor", scale.clone())

    @classmethod
    def empty(cls, layer, name):
        """A layer for a file to fill, around a float one."""
        return cls(layer, torch.ones(weight_of(layer, name).shape[1], device=layer.weight.device))

    def settings(self):
        """What config.json says of the layer: nothing more, for the one inside has an entry of its own."""
        return {}

    @property
    def weight(self):
        """The weight of the layer: for code that looks at it, as T5's does."""
        return self.layer.weight

    def forward(self, input):
        return self.layer(input / self.divisor.to(input.dtype))


def rescale_model(model, calibration, choose_scale, divide=False, ignore=()):
    """Move scales from the inputs of a model's linear layers into their weights, in place. What it computes stays.

    Args:
        model: a torch.nn.Module in evaluation mode.
        calibration: one batch that the model takes; see `qlib.methods.calibration.run_batch`.
        choose_scale: gets the weights that read one tensor, a list of (rows, columns), and that tensor, (tokens,
            columns), both of the model as it came; returns float32 (columns,), all positive.
        divide: what to do where no layer before can take the division: False to leave those layers as they are, True
            to put a DividedInput in the place of each.
        ignore: as for `qlib.quantize_model`; a group of layers is left if all of them are ignored.

    Returns:
        {SharedInput: scale} of all groups; the scale is None for those that were left.
    """
    shared = [group for group in shared_inputs(model, calibration) if not all_ignored(model, group, ignore)]
    by_layer = {group.layers[0]: group for group in shared if divide or group.source}
    scales = dict.fromkeys(shared)

    def visit(name, _, x):
        group = by_layer[name]
        scales[group] = choose_scale(
            [weight_of(model.get_submodule(layer), layer).detach() for layer in group.layers], x
        )

    visit_layers(model, calibration, list(by_layer), visit, "choosing scales")
    # Those without a source last: a DividedInput in the place of another group's source would hide its weight.
    for group in sorted(by_layer.values(), key=lambda group: group.source is None):
        if scales[group] is not None:
            fold(model, group, scales[group])
    return scales


def fold(model, group, scale):
    """Multiply the columns of a group's weights by `scale`, and divide the outputs of its source by it."""
    with torch.no_grad():
        for name in group.layers:
            weight_of(model.get_submodule(name), name).mul_(scale)
        if group.source is None:
            for name in group.layers:
                replace(model, {name: DividedInput(model.get_submodule(name), scale)})
            return
        source = model.get_submodule(group.source)
        if is_linear(source):
            weight_of(source, group.source).div_(scale.unsqueeze(1))
        else:
            source.weight.div_(scale)
        if getattr(source, "bias", None) is not None:
            source.bias.div_(scale)


def shared_inputs(model, batch):
    """The groups of linear layers that read one tensor, each with the layer before that can take its scales.

    A candidate is a norm whose output is that tensor, or a linear layer before with as many outputs. It is believed
    when the model computes the same to the last bit after `fold` with powers of two, by which floats are multiplied
    without error.

    Args:
        model: a torch.nn.Module in evaluation mode; it stays as it is.
        batch: see `run_batch`; its first example is used.

    Returns:
        list of SharedInput, in the order in which the layers are called.
    """
    sample, linears, calls = first_example(batch), set(layers_to_quantize(model, ())), []
    watched = {name: module for name, module in model.named_modules() if name in linears or is_norm(module)}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: calls.append((name, inputs[:1], output)))
        for name, module in watched.items()
    ]
    try:
        expected = tensors_in(run_batch(model, sample))
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _, _ in calls]
    calls = [call for call in calls if names.count(call[0]) == 1]  # what is called twice has two inputs
    readers = {}
    for name, inputs, _ in calls:
        if name in linears:
            (x,) = inputs
            readers.setdefault(id(x), (x, []))[1].append(name)
    groups = []
    for x, layers in readers.values():
        candidates = [SharedInput(tuple(layers), source) for source in sources(x, layers[0], calls, linears)]
        believed = (group for group in candidates if keeps_function(model, group, x.shape[-1], sample, expected))
        groups.append(next(believed, SharedInput(tuple(layers), None)))
    return groups


def sources(x, reader, calls, linears):
    """The names of the layers that may have made `x`, which the layer `reader` takes, the likeliest first."""
    norms = [name for name, _, output in calls if output is x and name not in linears]
    if norms or x.shape[-2:-1] == (1,):  # a single token attends to itself alone, whatever its query: nothing to learn
        return norms
    before = [(name, output) for name, _, output in calls[: [name for name, _, _ in calls].index(reader)]]
    fitting = [name for name, output in before if name in linears and output.shape == x.shape]
    return fitting[::-1][:TRIES]


def keeps_function(model, group, columns, sample, expected):
    """Whether a model computes the same when a group's input is rescaled; the model is put back afterwards."""
    with restored(model, [*group.layers, group.source]):
        fold(model, group, 2.0 ** (torch.arange(columns) % 3))
        found = tensors_in(run_batch(model, sample))
    return all(torch.equal(after, before) for after, before in zip(found, expected, strict=True))


@contextlib.contextmanager
def restored(model, names):
    """Give the parameters of the named layers back their values at the end."""
    parameters = [parameter for name in names for parameter in model.get_submodule(name).parameters(recurse=False)]
    copies = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, copy in zip(parameters, copies, strict=True):
                parameter.copy_(copy)


def emulate_outliers(model, batch, ratio=16.0):
    """Give a model an outlier channel such as large ones have, in place, and change nothing that it computes.

    This is an emulation. A function-preserving rescale makes one channel, the same behind each norm, `ratio` times as
    large as the median channel, and the weights that read it as much smaller. In a model that grew its outliers by
    training those weights are not small, and the channel matters more. The factor is a power of two, so that the
    outputs of a float32 model stay equal to the last bit. Dettmers et al. 2022 (arXiv:2208.07339), section 4, describes
    real ones.

    Args:
        model, batch: as for `shared_inputs`.
        ratio: of the channel's largest magnitude to that of the median channel, hit to within a factor of 1.42.

    Returns:
        (channel, {name of a layer: its ratio afterwards}), for each layer that reads a norm's output.
    """
    groups = [g for g in shared_inputs(model, batch) if g.source and not is_linear(model.get_submodule(g.source))]
    before = channel_magnitudes(model, batch)
    relative = {group: before[group.layers[0]] / before[group.layers[0]].median() for group in groups}
    channel = int(sum(relative.values()).argmax())
    for group, magnitudes in relative.items():
        scale = torch.ones_like(magnitudes)
        scale[channel] = 2.0 ** -torch.log2(ratio / magnitudes[channel]).round()
        fold(model, group, scale)
    after = channel_magnitudes(model, batch)
    names = [name for group in groups for name in group.layers]
    return channel, {name: (after[name][channel] / after[name].median()).item() for name in names}


def all_ignored(model, group, ignore):
    """Whether every layer of a group is one to leave."""
    return all(is_ignored(name, model.get_submodule(name), ignore) for name in group.layers)


def is_norm(module):
    """Whether a module is likely to end by multiplying each channel by a weight, as LayerNorm and RMSNorm do."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.ndim == 1


def first_example(batch):
    """The first example of a batch, as a batch of one."""
    if isinstance(batch, collections.abc.Mapping):
        return {name: tensor[:1] for name, tensor in batch.items()}
    return batch[:1]


def tensors_in(output):
    """The tensors that a model gives back, whether alone, in a tuple or by name."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, collections.abc.Mapping) else output
    return [part for part in parts if isinstance(part, torch.Tensor)]
