"""Exercises of lesson 11: putting quantized layers in the place of PyTorch's."""

import torch
from torch.nn import Embedding, LayerNorm, Linear, ModuleDict, ReLU, Sequential

from course.exercises.exercise import Case, Exercise, Words
from course.exercises.judge import short
from course.exercises.mistakes import Mistake, edit
from course.helper import replace_linear_with_target
from qlib.model import layers_to_quantize

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


def with_one_layer_in_evaluation_mode():
    model = flat()
    model["up"].eval()
    return model


def outline(model):
    """{name: words} of the layers of a model: what each is, and of a new one what it was made with."""
    words = {}
    for name, layer in model.named_modules():
        # A child that is set under a dotted name has the path of another layer.
        name = f"a second {name}" if name in words else name
        if isinstance(layer, New):
            where = next(layer.buffers()).device.type
            mode = "" if layer.training == model.training else f", in {'training' if layer.training else 'eval'} mode"
            spoilt = "" if layer.scales.dtype == torch.float32 else f", its own scales cast to {short(layer.scales.dtype)}"
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


# The lines of the key that several mistakes change.
CALL = "replace_linear_with_target(child, target_class, module_name_to_exclude)"
IS_LEFT = "name not in module_name_to_exclude"

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
        Case("a model in half precision", (lambda: flat().half(), New, []), use=replaced),
        Case("new layers that hold a Linear themselves", (flat, Wrapper, []), use=replaced),
        Case("a model in evaluation mode", (lambda: flat().eval(), New, []), use=replaced),
        Case("a model on the meta device", (lambda: flat().to("meta"), New, []), use=replaced),
        Case("a layer in evaluation mode", (with_one_layer_in_evaluation_mode, New, []), use=replaced),
    ],
    mistakes=[
        Mistake(edit(CALL, "pass"), "with the model's own children alone; call the function on each child that stays"),
        Mistake(
            edit(
                "name, child in module.named_children()",
                "above, name, child in [(m, *pair) for m in [module, *module.children()] for pair in m.named_children()]",
                "setattr(module",
                "setattr(above",
                CALL,
                "pass",
            ),
            "with children and grandchildren alone; the function has to call itself",
        ),
        Mistake(
            edit("named_children", "named_modules", "name not in", 'name.rpartition(".")[2] not in', CALL, "pass"),
            'with `setattr(module, "a.b", …)` inside a loop over `named_modules`: it adds a child of that name to the module that the loop walks over',
        ),
        Mistake(
            edit("module.named_children()", "list(module.named_modules())", "name not in", 'name.rpartition(".")[2] not in', CALL, "pass"),
            'with `setattr(module, "a.b", …)`: it adds a child of that name to the top of the model, and the old layer stays where it was; set the child on its own parent',
        ),
        Mistake(edit("named_children", "named_modules"), "with `named_modules`, which gives the module itself first: the function calls itself with what it was called with"),
        Mistake(
            edit("setattr(module, name, layer.train(child.training))", "child = layer.train(child.training)"),
            "with the new layer assigned to the loop's variable, which the model never sees; use `setattr` on the parent",
        ),
        Mistake(
            edit("setattr(module, name, layer.train(child.training))", "module.name = layer.train(child.training)"),
            "with `module.name = …`, which sets an attribute called name; `setattr(module, name, …)` takes the name that the variable holds",
        ),
        Mistake(edit("for name", "import copy; module = copy.deepcopy(module)\n    for name", CALL, CALL + "\n    return module"), "with a changed copy returned; the model itself has to change"),
        Mistake(edit("    else:\n            " + CALL, CALL.replace("child", "getattr(module, name)")), "with the new layers walked into as well: their own parts are replaced too"),
        Mistake(edit("(child.training))", "(child.training))\n            return"), "with a `return` after the first layer that was replaced"),
        Mistake(edit("else:", "elif next(child.children(), None) is not None:", CALL, "return " + CALL), "with `return` before the call on a child: the children after it are never reached"),
        Mistake(edit(CALL, "return " + CALL), "with `return` before the call, even for a child that has no children, such as a ReLU: the loop ends there"),
        Mistake(edit(" and " + IS_LEFT, ""), "without a look at `module_name_to_exclude`"),
        Mistake(edit("name not in", "name in"), "with the test turned round: only what is excluded was replaced"),
        Mistake(
            edit(CALL, "replace_linear_with_target(child, target_class, [])"),
            "with the list of exclusions heeded at the top alone: hand it on to the call for the children, and compare it with the name that the parent gives, not with a path",
        ),
        Mistake(edit(IS_LEFT, "not any(part in name for part in module_name_to_exclude)"), 'with every name excluded that contains one of the list: "gate_up" is not "up"'),
        Mistake(edit(IS_LEFT, 'name not in " ".join(module_name_to_exclude)'), 'with every name excluded that is part of one in the list: "up" is not "gate_up"'),
        Mistake(
            edit("if isinstance", "if name in module_name_to_exclude:\n            break\n        if isinstance"),
            "with `break` at an excluded name: it ends the loop, and the children after it are left too; `continue` goes on with the next",
        ),
        Mistake(
            edit("if isinstance", "if name in module_name_to_exclude:\n            continue\n        if isinstance"),
            "with a block left out because it has the name of an excluded layer; only a Linear of that name is left",
        ),
        Mistake(edit(CALL, CALL + "\n    module.eval()"), "with the mode of the whole model set; set that of the new layer alone"),
        Mistake(edit(CALL, CALL + "\n    module.half()"), "with the whole model cast; only the linear layers change"),
        Mistake(edit("setattr(", "layer.weight = child.weight\n            setattr("), "with the float weight put into the new layer; it is to be empty"),
        Mistake(edit("setattr(", "layer.bias = child.bias\n            setattr("), "with the old bias put into the new layer; it is to be empty"),
        Mistake(
            edit("layer.train(child.training))", "layer.train(child.training))\n            layer.quantize(child.weight)"),
            "with the new layer quantized at once, which not every `target_class` can be; here it stays empty",
        ),
        Mistake(
            edit("layer.train(", "layer.to(child.weight.dtype).train("),
            "with the new layer cast to the weight's dtype, its own scales as well; `.to(child.weight.device)` moves a layer and casts nothing",
        ),
        Mistake(edit("isinstance(child, torch.nn.Linear)", 'hasattr(child, "weight")'), "with everything taken that has a weight; norms and embeddings do"),
        Mistake(edit("isinstance(child, torch.nn.Linear)", "not list(child.children())"), "with everything taken that has no children; activations have none"),
        Mistake(edit("layer.train(child.training)", "target_class"), "with the class itself put in; call it, to make a layer"),
        Mistake(edit("child.bias is not None", "False"), "with no bias for any layer"),
        Mistake(edit("child.bias is not None", "True"), "with a bias for every layer; `child.bias` is None where there is none"),
        Mistake(edit("is not None", "is None"), "with a bias just where there was none"),
        Mistake(edit("child.bias is not None", "child.bias"), "with the bias itself handed over; the new layer only wants to know whether there is one"),
        Mistake(edit(", child.weight.dtype", ""), "without the weight's dtype: the new layer takes float32"),
        Mistake(edit(", child.bias is not None, child.weight.dtype", ""), "with the sizes alone: the new layer needs the bias and the dtype too"),
        Mistake(edit("child.in_features, child.out_features", "*child.weight.shape"), "with inputs and outputs swapped: the inputs come first, though `weight.shape` begins with the outputs"),
        Mistake(edit("child.bias is not None, child.weight.dtype", "child.weight.dtype, child.bias is not None"), "with the dtype before the bias; the order is inputs, outputs, bias, dtype"),
        Mistake(edit(".train(child.training)", ""), "with a new layer in training mode, as every layer is born; `.train(child.training)` sets it"),
        Mistake(edit(".train(child.training)", ".eval()"), "with every new layer in evaluation mode, whatever the old was in"),
        Mistake(edit("train(child.training)", "train(module.training)"), "with the mode of the module around it; a layer has a mode of its own, `child.training`"),
        Mistake(edit("child.weight.device", 'torch.device("cpu")'), "with a new layer on the CPU; make it on, or move it to, `child.weight.device`"),
        Mistake(edit("child.weight.device", 'torch.device("cpu")', ".train(child.training)", ""), "with a new layer as it is born, in training mode and on the CPU, whatever the old was"),
        Mistake(
            edit("module.named_children()", "list(module.named_children())", "setattr(", "delattr(module, name)\n            setattr("),
            "with the old layer deleted before the new one is set: it moves to the end, and the order of children is the order in which a Sequential runs them",
        ),
    ],
    parts=("the model",),
    hints=[
        "Look at the children of the module. A Linear that is not excluded is replaced; any other child is a module with children of its own, and the same has to be done to it.",
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


def named(answer, make, ignore):
    """What the exercise compares: the list of names, in words where it holds something else."""
    result = answer(make(), ignore)
    if isinstance(result, list) and not all(isinstance(item, str) for item in result):
        return Words("a list of " + ", ".join(sorted({type(item).__name__ for item in result})))
    return result


# The parts of the key that several mistakes change.
HOLDERS = "for _, module in modules for weight in module.parameters(recurse=False)"
IS_IGNORED = "is_ignored(name, layer, ignore)"
NAME = "        name\n"

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
        Case("ignore=(a function that says yes to two outputs,)", (lambda: language_model(tied=False), (has_two_outputs,)), use=named),
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
        Mistake(edit("layer in modules", "layer in model.named_children()"), "with the model's own children alone; `named_modules` goes all the way down"),
        Mistake(edit(NAME, '        name.rpartition(".")[2]\n'), "with the last part of each name alone; the path is needed to find the layer again"),
        Mistake(edit(" and not " + IS_IGNORED, ""), "without a look at `ignore`"),
        Mistake(edit(IS_IGNORED, "name in ignore"), "with whole names compared; a rule may also be a layer's last name or a glob: `is_ignored` knows"),
        Mistake(edit(IS_IGNORED, 'name.rpartition(".")[2] in ignore'), "with last names compared; a rule may also be a path or a glob: `is_ignored` knows"),
        Mistake(edit(IS_IGNORED, 'any(rule.strip("*.") in name for rule in ignore)'), 'with every name ignored that contains the rule: "ea" is not "head"'),
        Mistake(edit("not is_ignored", "is_ignored"), "with the test turned round: these are the layers that are ignored"),
        Mistake(edit(" and holders[id(layer.weight)] == 1", ""), "without a look at who else holds the weight: replacing a tied layer unties it, and the model grows"),
        Mistake(edit("== 1", "> 1"), "with the count turned round: these are the layers whose weight another module holds too"),
        Mistake(edit("in modules for", "in modules if is_linear(module) for"), "with linear layers compared among themselves; it is mostly an embedding that holds the weight too"),
        Mistake(
            edit("in modules for", "in modules if isinstance(module, torch.nn.Embedding) for", "== 1", "== 0"), "with embeddings looked at and nothing else; two linear layers may hold one weight too"
        ),
        Mistake(
            edit("Counter(id(weight) for _, module in modules", "dict((id(weight), module) for _, module in reversed(modules)", "holders[id(layer.weight)] == 1", "holders[id(layer.weight)] is layer"),
            "with the first holder of a shared weight kept; replacing any one of them unties it from the rest",
        ),
        Mistake(edit("id(weight)", "str(weight.tolist())", "id(layer.weight)", "str(layer.weight.tolist())"), "with weights taken for one because their values are equal; ask with `is`, or by `id`"),
        Mistake(
            edit("id(weight)", "weight.data_ptr()", "id(layer.weight)", "layer.weight.data_ptr()"),
            "with weights told apart by `data_ptr`; on the meta device all of them have address 0: ask with `is`, or by `id`",
        ),
        Mistake(
            edit("Counter(id(weight)", "list(weight", "holders[id(layer.weight)]", "holders.count(layer.weight)"),
            "with `in` or `count`, which compare tensors by `==`, number by number; ask with `is`, or by `id`",
        ),
        Mistake(edit("recurse=False", ""), "with `parameters()` of every module: it reaches into the children, so each parent counts as a holder; `recurse=False` asks the module alone"),
        Mistake(
            edit(HOLDERS, "for _, weight in model.named_parameters(remove_duplicate=False)"), "with names counted: a layer that stands in two places has two, and is still one holder; count modules"
        ),
        Mistake(edit("layer in modules", "layer in model.named_modules(remove_duplicate=False)"), "with a layer that stands in two places named twice; it is one layer"),
        Mistake(
            edit(IS_IGNORED, 'any(fnmatch.fnmatch(name, glob) for rule in ignore for glob in (rule, f"*.{rule}"))'), "with names and globs alone; a rule may also be a function: `is_ignored` knows"
        ),
        Mistake(
            edit(IS_IGNORED, 'any(rule(name, layer) if callable(rule) else fnmatch.fnmatch(name, f"*{rule}") for rule in ignore)'),
            'with every name ignored that ends in the rule: "up" is not "gate_up"',
        ),
        Mistake(
            edit("for _, module in modules", "for name, module in modules if not is_ignored(name, module, ignore)"), "with ignored layers not asked for their weights; they hold them all the same"
        ),
        Mistake(edit("is_linear(layer)", "isinstance(layer, torch.nn.Linear)"), "with nn.Linear alone; `is_linear` knows transformers' Conv1D too"),
        Mistake(edit("is_linear(layer)", "any(p.ndim > 1 for p in layer.parameters(recurse=False))"), "with every module that holds a matrix; an embedding looks rows up"),
        Mistake(edit("is_linear(layer)", 'hasattr(layer, "weight")'), "with every module that has a weight; norms and embeddings have one"),
        Mistake(edit("if name and", "if"), "with the model itself, whose name is empty; it has no parent to be replaced in"),
        Mistake(edit("return [", "return sorted(", "    ]", "    )"), "with the names sorted; keep the order of `named_modules`"),
        Mistake(edit(NAME, "        layer\n"), "with the layers in place of their names"),
        Mistake(edit(NAME, "        (name, layer)\n"), "with (name, layer) pairs; give the names alone"),
        Mistake(edit(NAME, '        f"{name}.weight"\n'), "with the names of the weights; give those of the layers"),
    ],
    hints=[
        "Go over `model.named_modules()`. Three things rule a module out: it is not linear, it is ignored, or some other module holds its weight as well.",
        "Count for each parameter how many modules hold it themselves: `module.parameters(recurse=False)` for every module, and the parameter's `id` as the key. A weight that is not shared counts 1.",
        "`holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))`; then keep the names "
        "with `is_linear(layer)`, not `is_ignored(name, layer, ignore)`, and a count of 1 for `id(layer.weight)`; and "
        "leave out the empty name, the model itself.",
    ],
)

EXERCISES = [REPLACE_LINEAR_WITH_TARGET, LAYERS_TO_QUANTIZE]
