"""Exercises of lesson 11: putting quantized layers in the place of PyTorch's."""

import copy
import fnmatch

import torch
from torch.nn import Embedding, LayerNorm, Linear, ModuleDict, ReLU, Sequential

from course.exercises.exercise import Case, Exercise, Mistake, Words
from course.exercises.judge import short
from course.helper import replace_linear_with_target
from qlib.model import is_ignored, is_linear, layers_to_quantize

# ---------------------------------------------------------------- 11.1 replace_linear_with_target


class New(torch.nn.Module):
    """A layer that remembers what it was made with."""

    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__()
        self.made_with = f"{in_features}, {out_features}, {bool(bias)}, {str(dtype).removeprefix('torch.')}"
        self.register_buffer("values", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(out_features))


class Wrapper(New):
    """A layer that has a small Linear of its own inside, as many quantized layers do."""

    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias, dtype)
        if in_features > 1:
            self.inner = Linear(1, 1)


def flat():
    return ModuleDict({"up": Linear(4, 6), "act": ReLU(), "down": Linear(6, 4, bias=False)})


def nested():
    attention = ModuleDict({"q": Linear(4, 4), "k": Linear(4, 2, bias=False)})
    block = ModuleDict({"attn": attention, "norm": LayerNorm(4), "mlp": Sequential(Linear(4, 6), ReLU(), Linear(6, 4))})
    return ModuleDict({"block": block, "head": Linear(4, 5)})


def names_alike():
    return ModuleDict({"up": Linear(2, 2), "gate_up": Linear(2, 3), "block": ModuleDict({"up": Linear(3, 2)})})


def a_block_called_head():
    head = Sequential(Linear(3, 4), ReLU(), Linear(4, 5))
    return ModuleDict({"body": ModuleDict({"head": Linear(3, 3)}), "head": head})


def in_half_precision():
    return flat().half()


def in_evaluation_mode():
    return flat().eval()


def on_meta():
    return flat().to("meta")


def outline(model):
    """{name: words} of the layers of a model: what each is, and of a new one what it was made with."""
    words = {}
    for name, layer in model.named_modules():
        # A child that is set under a dotted name has the path of another layer.
        name = f"a second {name}" if name in words else name
        if isinstance(layer, New):
            where = next(layer.buffers()).device.type
            mode = "" if layer.training == model.training else f", in {'training' if layer.training else 'eval'} mode"
            spoilt = (
                "" if layer.scales.dtype == torch.float32 else f", its own scales cast to {short(layer.scales.dtype)}"
            )
            holds = "".join(f", with a float {key}" for key, _ in layer.named_parameters(recurse=False))
            device = f", on {where}" if where != "cpu" else ""
            words[name] = Words(f"New({layer.made_with})" + mode + device + spoilt + holds)
        elif next(layer.children(), None) is None:
            words[name] = Words(f"a {type(layer).__name__}")
    return words


def rest_of(model):
    """{name: what a replacement must not change} of the parameters of a model, and the modes of its modules."""
    parameters = {name: (p.dtype, p.device, p.requires_grad) for name, p in model.named_parameters()}
    return parameters | {f"{name}, its mode": module.training for name, module in model.named_modules()}


def replaced(answer, make, target_class, excluded):
    """What the exercise compares: the model after the answer has worked on it. What it returns does not matter."""
    model = make()
    before = rest_of(model)
    result = answer(model, target_class, excluded)
    words = outline(model)
    new = tuple(name for name, layer in model.named_modules() if isinstance(layer, New))
    after = {name: state for name, state in rest_of(model).items() if not name.startswith(new)}
    if any(before.get(name, state) != state for name, state in after.items()):
        first = next(iter(words))
        words[first] = Words(f"{words[first]} (and the rest of the model was changed)")
    if isinstance(result, torch.nn.Module) and result is not model:
        first = next(iter(words))
        words[first] = Words(f"{words[first]} (and another model was returned)")
    return (words,)


def make_new(linear, target_class):
    """The right layer in the place of a Linear, for the mistakes below to spoil in one place each."""
    with linear.weight.device:
        new = target_class(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype)
    return new.train(linear.training)


def walks(module, target_class, excluded, make=make_new, is_excluded=lambda name, excluded: name in excluded):
    for name, child in module.named_children():
        if isinstance(child, Linear) and not is_excluded(name, excluded):
            setattr(module, name, make(child, target_class))
        else:
            walks(child, target_class, excluded, make, is_excluded)


def never_goes_down(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))


def goes_down_one_level(module, target_class, module_name_to_exclude):
    never_goes_down(module, target_class, module_name_to_exclude)
    for child in module.children():
        never_goes_down(child, target_class, module_name_to_exclude)


def sets_dotted_names(module, target_class, module_name_to_exclude):
    for name, child in module.named_modules():
        if isinstance(child, Linear) and name.rpartition(".")[2] not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))


def sets_dotted_names_of_a_list(module, target_class, module_name_to_exclude):
    for name, child in list(module.named_modules()):
        if isinstance(child, Linear) and name.rpartition(".")[2] not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))


def assigns_to_the_variable(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            child = make_new(child, target_class)
        else:
            assigns_to_the_variable(child, target_class, module_name_to_exclude)


def works_on_a_copy(module, target_class, module_name_to_exclude):
    module = copy.deepcopy(module)
    walks(module, target_class, module_name_to_exclude)
    return module


def walks_into_the_new(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            child = make_new(child, target_class)
            setattr(module, name, child)
        walks_into_the_new(child, target_class, module_name_to_exclude)


def leaves_whole_blocks(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if name in module_name_to_exclude:
            continue
        if isinstance(child, Linear):
            setattr(module, name, make_new(child, target_class))
        else:
            leaves_whole_blocks(child, target_class, module_name_to_exclude)


def sets_the_mode_of_all(module, target_class, module_name_to_exclude):
    walks(module, target_class, module_name_to_exclude)
    module.eval()


def casts_the_model(module, target_class, module_name_to_exclude):
    walks(module, target_class, module_name_to_exclude)
    module.half()


def keeps_the_float_weight(module, target_class, module_name_to_exclude):
    def make(linear, target):
        new = make_new(linear, target)
        new.weight = linear.weight
        return new

    walks(module, target_class, module_name_to_exclude, make)


def casts_the_new_layer(module, target_class, module_name_to_exclude):
    def make(linear, target):
        return make_new(linear, target).to(linear.weight.dtype)

    walks(module, target_class, module_name_to_exclude, make)


def stops_at_the_first(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))
            return
        stops_at_the_first(child, target_class, module_name_to_exclude)


def returns_into_the_first_child(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))
        elif next(child.children(), None) is not None:
            return returns_into_the_first_child(child, target_class, module_name_to_exclude)


def excludes_nothing(module, target_class, module_name_to_exclude):
    walks(module, target_class, [])


def replaces_what_is_excluded(module, target_class, module_name_to_exclude):
    walks(module, target_class, module_name_to_exclude, is_excluded=lambda name, excluded: name not in excluded)


def forgets_the_exclusions_below(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))
        else:
            walks(child, target_class, [])


def excludes_names_that_contain_one(module, target_class, module_name_to_exclude):
    contains = lambda name, excluded: any(part in name for part in excluded)  # noqa: E731 - as people write it
    walks(module, target_class, module_name_to_exclude, is_excluded=contains)


def excludes_names_that_are_part_of_one(module, target_class, module_name_to_exclude):
    walks(module, target_class, module_name_to_exclude, is_excluded=lambda name, excluded: name in " ".join(excluded))


def stops_at_an_excluded_one(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if name in module_name_to_exclude:
            break
        if isinstance(child, Linear):
            setattr(module, name, make_new(child, target_class))
        else:
            stops_at_an_excluded_one(child, target_class, module_name_to_exclude)


def replaces_all_that_has_a_weight(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if hasattr(child, "weight") and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))
        else:
            replaces_all_that_has_a_weight(child, target_class, module_name_to_exclude)


def replaces_all_without_children(module, target_class, module_name_to_exclude):
    for name, child in module.named_children():
        if next(child.children(), None) is None and name not in module_name_to_exclude:
            setattr(module, name, make_new(child, target_class))
        else:
            replaces_all_without_children(child, target_class, module_name_to_exclude)


def sets_the_class(module, target_class, module_name_to_exclude):
    walks(module, target_class, module_name_to_exclude, make=lambda linear, target: target)


def made(*which, mode=True, device=True):
    """A mistake that makes the new layer in another way: `which` are functions of the Linear, one an argument."""

    def mistaken(module, target_class, module_name_to_exclude):
        def make(linear, target):
            with linear.weight.device if device else torch.device("cpu"):
                new = target(*(argument(linear) for argument in which))
            return new.train(linear.training if mode else True)

        walks(module, target_class, module_name_to_exclude, make)

    return mistaken


def inputs(linear):
    return linear.in_features


def outputs(linear):
    return linear.out_features


def has_bias(linear):
    return linear.bias is not None


def dtype(linear):
    return linear.weight.dtype


drops_the_bias = made(inputs, outputs, lambda linear: False, dtype)
gives_all_a_bias = made(inputs, outputs, lambda linear: True, dtype)
turns_the_bias_round = made(inputs, outputs, lambda linear: linear.bias is None, dtype)
hands_over_the_bias = made(inputs, outputs, lambda linear: linear.bias, dtype)
forgets_the_dtype = made(inputs, outputs, has_bias)
forgets_bias_and_dtype = made(inputs, outputs)
swaps_the_features = made(outputs, inputs, has_bias, dtype)
swaps_bias_and_dtype = made(inputs, outputs, dtype, has_bias)
loses_the_mode = made(inputs, outputs, has_bias, dtype, mode=False)
loses_the_device = made(inputs, outputs, has_bias, dtype, device=False)
loses_mode_and_device = made(inputs, outputs, has_bias, dtype, mode=False, device=False)


def deletes_first(module, target_class, module_name_to_exclude):
    for name, child in list(module.named_children()):
        if isinstance(child, Linear) and name not in module_name_to_exclude:
            delattr(module, name)
            setattr(module, name, make_new(child, target_class))
        else:
            deletes_first(child, target_class, module_name_to_exclude)


REPLACE_LINEAR_WITH_TARGET = Exercise(
    id="11.1",
    name="replace_linear_with_target",
    key=replace_linear_with_target,
    cases=[
        Case("two linear layers and a ReLU, nothing excluded", (flat, New, []), use=replaced),
        Case("layers inside layers", (nested, New, []), use=replaced),
        Case('layers inside layers, excluded ["head", "k"]', (nested, New, ["head", "k"]), use=replaced),
        Case('names that are alike, excluded ["up"]', (names_alike, New, ["up"]), use=replaced),
        Case('names that are alike, excluded ["gate_up"]', (names_alike, New, ["gate_up"]), use=replaced),
        Case('a block and a layer of one name, excluded ["head"]', (a_block_called_head, New, ["head"]), use=replaced),
        Case("a model in half precision", (in_half_precision, New, []), use=replaced),
        Case("new layers that hold a Linear themselves", (flat, Wrapper, []), use=replaced),
        Case("a model in evaluation mode", (in_evaluation_mode, New, []), use=replaced),
        Case("a model on the meta device", (on_meta, New, []), use=replaced),
    ],
    mistakes=[
        Mistake(never_goes_down, "with the model's own children alone; call the function on each child that stays"),
        Mistake(goes_down_one_level, "with children and grandchildren alone; the function has to call itself"),
        Mistake(
            sets_dotted_names,
            'with `setattr(module, "a.b", …)` inside a loop over `named_modules`: it adds a child of that name to the '
            "module that the loop walks over",
        ),
        Mistake(
            sets_dotted_names_of_a_list,
            'with `setattr(module, "a.b", …)`: it adds a child of that name to the top of the model, and the old layer '
            "stays where it was; set the child on its own parent",
        ),
        Mistake(
            assigns_to_the_variable,
            "with the new layer assigned to the loop's variable, which the model never sees; use `setattr` on the "
            "parent",
        ),
        Mistake(works_on_a_copy, "with a changed copy returned; the model itself has to change"),
        Mistake(walks_into_the_new, "with the new layers walked into as well: their own parts are replaced too"),
        Mistake(stops_at_the_first, "with a `return` after the first layer that was replaced"),
        Mistake(
            returns_into_the_first_child,
            "with `return` before the call on a child: the children after it are never reached",
        ),
        Mistake(excludes_nothing, "without a look at `module_name_to_exclude`"),
        Mistake(replaces_what_is_excluded, "with the test turned round: only what is excluded was replaced"),
        Mistake(
            forgets_the_exclusions_below,
            "with the list of exclusions heeded at the top alone: hand it on to the call for the children, and compare it "
            "with the name that the parent gives, not with a path",
        ),
        Mistake(
            excludes_names_that_contain_one,
            'with every name excluded that contains one of the list: "gate_up" is not "up"',
        ),
        Mistake(
            excludes_names_that_are_part_of_one,
            'with every name excluded that is part of one in the list: "up" is not "gate_up"',
        ),
        Mistake(
            stops_at_an_excluded_one,
            "with `break` at an excluded name: it ends the loop, and the children after it are left too; `continue` "
            "goes on with the next",
        ),
        Mistake(
            leaves_whole_blocks,
            "with a block left out because it has the name of an excluded layer; only a Linear of that name is left",
        ),
        Mistake(sets_the_mode_of_all, "with the mode of the whole model set; set that of the new layer alone"),
        Mistake(casts_the_model, "with the whole model cast; only the linear layers change"),
        Mistake(keeps_the_float_weight, "with the float weight put into the new layer; it is to be empty"),
        Mistake(
            casts_the_new_layer,
            "with the new layer cast to the weight's dtype, its own scales as well; `.to(child.weight.device)` moves a "
            "layer and casts nothing",
        ),
        Mistake(replaces_all_that_has_a_weight, "with everything taken that has a weight; norms and embeddings do"),
        Mistake(replaces_all_without_children, "with everything taken that has no children; activations have none"),
        Mistake(sets_the_class, "with the class itself put in; call it, to make a layer"),
        Mistake(drops_the_bias, "with no bias for any layer"),
        Mistake(gives_all_a_bias, "with a bias for every layer; `child.bias` is None where there is none"),
        Mistake(turns_the_bias_round, "with a bias just where there was none"),
        Mistake(
            hands_over_the_bias,
            "with the bias itself handed over; the new layer only wants to know whether there is one",
        ),
        Mistake(forgets_the_dtype, "without the weight's dtype: the new layer takes float32"),
        Mistake(forgets_bias_and_dtype, "with the sizes alone: the new layer needs the bias and the dtype too"),
        Mistake(
            swaps_the_features,
            "with inputs and outputs swapped: the inputs come first, though `weight.shape` begins with the outputs",
        ),
        Mistake(swaps_bias_and_dtype, "with the dtype before the bias; the order is inputs, outputs, bias, dtype"),
        Mistake(
            loses_the_mode,
            "with a new layer in training mode, as every layer is born; `.train(child.training)` sets it",
        ),
        Mistake(loses_the_device, "with a new layer on the CPU; make it on, or move it to, `child.weight.device`"),
        Mistake(
            loses_mode_and_device,
            "with a new layer as it is born, in training mode and on the CPU, whatever the old was",
        ),
        Mistake(
            deletes_first,
            "with the old layer deleted before the new one is set: it moves to the end, and the order of children is "
            "the order in which a Sequential runs them",
        ),
    ],
    parts=("the model",),
    hints=[
        "Look at the children of the module. A Linear that is not excluded is replaced; any other child is a module "
        "with children of its own, and the same has to be done to it.",
        "For each (name, child) of `module.named_children()`: either `setattr(module, name, new)`, or the function "
        "calls itself with `child` for `module`. The order of arguments of `target_class`: inputs, outputs, bias, dtype.",
        "The bias argument is `child.bias is not None`. The mode: `new.train(child.training)`. The device: make the "
        "layer inside `with child.weight.device:`, or call `.to(child.weight.device)` on it.",
    ],
)


# ---------------------------------------------------------------- 11.2 layers_to_quantize

# transformers' Conv1D is told by its name and its module's, so that one need not import it.
Conv1D = type("Conv1D", (torch.nn.Module,), {"__module__": "transformers.pytorch_utils"})


def conv1d(inputs, outputs):
    layer = Conv1D()
    layer.weight, layer.bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((inputs, outputs), (outputs,)))
    return layer


def language_model(tied):
    block = ModuleDict({"q": Linear(4, 4), "act": ReLU(), "k": Linear(4, 2)})
    model = ModuleDict({"embed": Embedding(5, 4), "block": block, "norm": LayerNorm(4), "head": Linear(4, 5)})
    if tied:
        model["head"].weight = model["embed"].weight
    return model


def has_two_outputs(name, layer):
    return layer.out_features == 2


def two_tied_layers():
    model = ModuleDict({"a": Linear(3, 3), "b": Linear(3, 3), "c": Linear(3, 3)})
    model["b"].weight = model["a"].weight
    return model


def shared_layer():
    proj = Linear(3, 3)
    return ModuleDict({"first": ModuleDict({"proj": proj}), "second": ModuleDict({"proj": proj, "out": Linear(3, 3)})})


def equal_layers():
    model = Sequential(Linear(2, 2), Linear(2, 2))
    model[1].load_state_dict(model[0].state_dict())
    return model


def gpt2_like():
    return ModuleDict({"wte": Embedding(5, 4), "c_attn": conv1d(4, 12), "c_proj": conv1d(4, 4)})


def parents(model):
    """What a mistake needs: (name, layer) of each module, one that stands in several places once."""
    return list(model.named_modules())


def chosen(model, ignore, modules=None, ignored=is_ignored, linear=is_linear, shared=None):
    """A right answer whose parts the mistakes below replace one at a time."""
    modules = parents(model) if modules is None else modules
    shared = held_by_others if shared is None else shared
    return [
        name
        for name, layer in modules
        if name and linear(layer) and not ignored(name, layer, ignore) and not shared(model, layer)
    ]


def held_by_others(model, layer):
    return any(
        weight is layer.weight
        for other in model.modules()
        if other is not layer
        for weight in other.parameters(recurse=False)
    )


def looks_at_children_alone(model, ignore):
    return chosen(model, ignore, modules=list(model.named_children()))


def gives_bare_names(model, ignore):
    return [name.rpartition(".")[2] for name in layers_to_quantize(model, ignore)]


def ignores_nothing(model, ignore):
    return layers_to_quantize(model, ())


def ignores_by_the_whole_name(model, ignore):
    return chosen(model, ignore, ignored=lambda name, layer, ignore: name in ignore)


def ignores_by_the_last_name(model, ignore):
    return chosen(model, ignore, ignored=lambda name, layer, ignore: name.rpartition(".")[2] in ignore)


def ignores_by_substring(model, ignore):
    return chosen(model, ignore, ignored=lambda name, layer, ignore: any(rule.strip("*.") in name for rule in ignore))


def gives_what_is_ignored(model, ignore):
    return chosen(model, ignore, ignored=lambda name, layer, ignore: not is_ignored(name, layer, ignore))


def takes_tied_layers_too(model, ignore):
    return chosen(model, ignore, shared=lambda model, layer: False)


def compares_linear_layers_alone(model, ignore):
    def shared(model, layer):
        return any(m is not layer and m.weight is layer.weight for m in model.modules() if is_linear(m))

    return chosen(model, ignore, shared=shared)


def compares_with_embeddings_alone(model, ignore):
    def shared(model, layer):
        return any(m.weight is layer.weight for m in model.modules() if isinstance(m, Embedding))

    return chosen(model, ignore, shared=shared)


def keeps_the_first_of_two(model, ignore):
    seen, names = set(), []
    for name, layer in model.named_modules():
        new = id(getattr(layer, "weight", None)) not in seen
        seen.update(map(id, layer.parameters(recurse=False)))
        if name and new and is_linear(layer) and not is_ignored(name, layer, ignore):
            names.append(name)
    return names


def compares_values(model, ignore):
    def shared(model, layer):
        return any(
            weight.shape == layer.weight.shape and torch.equal(weight, layer.weight)
            for other in model.modules()
            if other is not layer
            for weight in other.parameters(recurse=False)
        )

    return chosen(model, ignore, shared=shared)


def compares_addresses(model, ignore):
    def shared(model, layer):
        return any(
            weight.data_ptr() == layer.weight.data_ptr()
            for other in model.modules()
            if other is not layer
            for weight in other.parameters(recurse=False)
        )

    return chosen(model, ignore, shared=shared)


def counts_the_parents(model, ignore):
    def shared(model, layer):
        return sum(any(p is layer.weight for p in other.parameters()) for other in model.modules()) > 1

    return chosen(model, ignore, shared=shared)


def counts_names(model, ignore):
    def shared(model, layer):
        return sum(p is layer.weight for _, p in model.named_parameters(remove_duplicate=False)) > 1

    return chosen(model, ignore, shared=shared)


def names_a_shared_layer_twice(model, ignore):
    return chosen(model, ignore, modules=list(model.named_modules(remove_duplicate=False)))


def ignores_by_patterns_alone(model, ignore):
    def ignored(name, layer, ignore):
        return any(fnmatch.fnmatch(name, pattern) for rule in ignore for pattern in (rule, f"*.{rule}"))

    return chosen(model, ignore, ignored=ignored)


def ignores_whatever_ends_so(model, ignore):
    def ignored(name, layer, ignore):
        return any(rule(name, layer) if callable(rule) else fnmatch.fnmatch(name, f"*{rule}") for rule in ignore)

    return chosen(model, ignore, ignored=ignored)


def asks_only_those_that_are_not_ignored(model, ignore):
    def shared(model, layer):
        return any(
            weight is layer.weight
            for name, other in model.named_modules()
            if other is not layer and not is_ignored(name, other, ignore)
            for weight in other.parameters(recurse=False)
        )

    return chosen(model, ignore, shared=shared)


def forgets_conv1d(model, ignore):
    return chosen(model, ignore, linear=lambda layer: isinstance(layer, Linear))


def takes_all_with_a_matrix(model, ignore):
    matrix = lambda layer: any(p.ndim > 1 for p in layer.parameters(recurse=False))  # noqa: E731 - as people write it
    return chosen(model, ignore, linear=matrix)


def takes_all_with_a_weight(model, ignore):
    return chosen(model, ignore, linear=lambda layer: hasattr(layer, "weight"))


def names_the_model_itself(model, ignore):
    modules = [(name or "the model", layer) for name, layer in parents(model)]
    return [name if name != "the model" else "" for name in chosen(model, ignore, modules)]


def gives_the_layers(model, ignore):
    return [model.get_submodule(name) for name in layers_to_quantize(model, ignore)]


def gives_pairs(model, ignore):
    return [(name, model.get_submodule(name)) for name in layers_to_quantize(model, ignore)]


def gives_parameters(model, ignore):
    return [f"{name}.weight" for name in layers_to_quantize(model, ignore)]


def named(answer, make, ignore):
    """What the exercise compares: the list of names, in words where it holds something else."""
    result = answer(make(), ignore)
    if isinstance(result, list) and not all(isinstance(item, str) for item in result):
        return Words("a list of " + ", ".join(sorted({type(item).__name__ for item in result})))
    return result


LAYERS_TO_QUANTIZE = Exercise(
    id="11.2",
    name="layers_to_quantize",
    key=layers_to_quantize,
    cases=[
        Case("a small model and nothing ignored", (lambda: language_model(tied=False), ()), use=named),
        Case('ignore=("head",)', (lambda: language_model(tied=False), ("head",)), use=named),
        Case('ignore=("block.*",)', (lambda: language_model(tied=False), ("block.*",)), use=named),
        Case('ignore=("q", "ea")', (lambda: language_model(tied=False), ("q", "ea")), use=named),
        Case('ignore=("up",), and a layer gate_up', (names_alike, ("up",)), use=named),
        Case(
            "ignore=(a function that says yes to two outputs,)",
            (lambda: language_model(tied=False), (has_two_outputs,)),
            use=named,
        ),
        Case("a head that is tied to the embedding", (lambda: language_model(tied=True), ()), use=named),
        Case("two linear layers with one weight", (two_tied_layers, ()), use=named),
        Case('two linear layers with one weight, ignore=("b",)', (two_tied_layers, ("b",)), use=named),
        Case("one layer in two places", (shared_layer, ()), use=named),
        Case("two layers whose weights happen to be equal", (equal_layers, ()), use=named),
        Case("transformers' Conv1D", (gpt2_like, ()), use=named),
        Case("a model on the meta device", (lambda: language_model(tied=False).to("meta"), ()), use=named),
        Case("a model that is a single Linear", (lambda: Linear(2, 3), ()), use=named),
    ],
    mistakes=[
        Mistake(looks_at_children_alone, "with the model's own children alone; `named_modules` goes all the way down"),
        Mistake(gives_bare_names, "with the last part of each name alone; the path is needed to find the layer again"),
        Mistake(ignores_nothing, "without a look at `ignore`"),
        Mistake(
            ignores_by_the_whole_name,
            "with whole names compared; a rule may also be a layer's last name or a glob: `is_ignored` knows",
        ),
        Mistake(
            ignores_by_the_last_name,
            "with last names compared; a rule may also be a path or a glob: `is_ignored` knows",
        ),
        Mistake(ignores_by_substring, 'with every name ignored that contains the rule: "ea" is not "head"'),
        Mistake(gives_what_is_ignored, "with the test turned round: these are the layers that are ignored"),
        Mistake(
            takes_tied_layers_too,
            "without a look at who else holds the weight: replacing a tied layer unties it, and the model grows",
        ),
        Mistake(
            compares_linear_layers_alone,
            "with linear layers compared among themselves; it is mostly an embedding that holds the weight too",
        ),
        Mistake(
            compares_with_embeddings_alone,
            "with embeddings looked at and nothing else; two linear layers may hold one weight too",
        ),
        Mistake(
            keeps_the_first_of_two,
            "with the first holder of a shared weight kept; replacing any one of them unties it from the rest",
        ),
        Mistake(
            compares_values, "with weights taken for one because their values are equal; ask with `is`, or by `id`"
        ),
        Mistake(
            compares_addresses,
            "with weights told apart by `data_ptr`; on the meta device all of them have address 0: ask with `is`, or "
            "by `id`",
        ),
        Mistake(
            counts_the_parents,
            "with `parameters()` of every module: it reaches into the children, so each parent counts as a holder; "
            "`recurse=False` asks the module alone",
        ),
        Mistake(
            counts_names,
            "with names counted: a layer that stands in two places has two, and is still one holder; count modules",
        ),
        Mistake(names_a_shared_layer_twice, "with a layer that stands in two places named twice; it is one layer"),
        Mistake(
            ignores_by_patterns_alone, "with names and globs alone; a rule may also be a function: `is_ignored` knows"
        ),
        Mistake(ignores_whatever_ends_so, 'with every name ignored that ends in the rule: "up" is not "gate_up"'),
        Mistake(
            asks_only_those_that_are_not_ignored,
            "with ignored layers not asked for their weights; they hold them all the same",
        ),
        Mistake(forgets_conv1d, "with nn.Linear alone; `is_linear` knows transformers' Conv1D too"),
        Mistake(takes_all_with_a_matrix, "with every module that holds a matrix; an embedding looks rows up"),
        Mistake(takes_all_with_a_weight, "with every module that has a weight; norms and embeddings have one"),
        Mistake(
            names_the_model_itself, "with the model itself, whose name is empty; it has no parent to be replaced in"
        ),
        Mistake(gives_the_layers, "with the layers in place of their names"),
        Mistake(gives_pairs, "with (name, layer) pairs; give the names alone"),
        Mistake(gives_parameters, "with the names of the weights; give those of the layers"),
    ],
    hints=[
        "Go over `model.named_modules()`. Three things rule a module out: it is not linear, it is ignored, or some other "
        "module holds its weight as well.",
        "Count for each parameter how many modules hold it themselves: `module.parameters(recurse=False)` for every "
        "module, and the parameter's `id` as the key. A weight that is not shared counts 1.",
        "`holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))`; then keep the names "
        "with `is_linear(layer)`, not `is_ignored(name, layer, ignore)`, and a count of 1 for `id(layer.weight)`; and "
        "leave out the empty name, the model itself.",
    ],
)

EXERCISES = [REPLACE_LINEAR_WITH_TARGET, LAYERS_TO_QUANTIZE]
