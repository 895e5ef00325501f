"""Exercises of lesson 12: which layers of a model mind, and which to leave at more bits."""

import itertools
import math

import torch
from torch.nn import Linear, ModuleList

from course.exercises.exercise import Case, Exercise, Words
from course.exercises.mistakes import Mistake, edit
from qlib import Scheme
from qlib.linear import is_float
from qlib.model import layers_to_leave, sensitivity

# ---------------------------------------------------------------- 12.1 sensitivity


class Block(torch.nn.Module):
    """Two layers between which numbers below 0 are lost."""

    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = linear(up), linear(down)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(torch.nn.Module):
    """Two blocks and a head whose name is also that of a layer of the blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = ModuleList([
            Block([[0.9, -0.2], [0.3, 0.7]], [[0.5, 0.6], [-0.4, 0.8]]),
            Block([[0.2, 1.1], [-0.9, 0.4]], [[1.3, 0.1], [0.35, -0.75]]),
        ])  # fmt: skip
        self.up = linear([[0.45, -0.8], [1.2, 0.55]])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.up(x)


def linear(weight):
    layer = Linear(2, 2, bias=False)
    layer.weight = torch.nn.Parameter(torch.tensor(weight), requires_grad=False)
    return layer


X = torch.tensor([[1.0, 0.5], [-0.25, 2.0], [0.75, -1.5]])
INT2, INT3 = Scheme(bits=2), Scheme(bits=3, symmetric=False, axis=None)
ALL = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "up"]


def output(model):
    """What the cases measure: a number that every layer of the net has a part in."""
    with torch.no_grad():
        return model(X).abs().sum().item()


def state_of(model, before):
    """{name: words} of a net's layers after a scan: whether each is as it was."""
    words, old = {}, dict(before.named_modules())
    for name, layer in model.named_modules():
        if next(layer.children(), None) is not None:
            continue
        if name not in old:
            words[name] = Words(f"a new {type(layer).__name__}")
        elif not is_float(layer, Linear):
            words[name] = Words(f"a {type(layer).__name__}")
        else:
            same = torch.equal(layer.weight, old[name].weight)
            words[name] = Words("as it was" if same else "a Linear with another weight")
    return words


def scanned(answer, names, scheme):
    """What the exercise compares: the numbers, and the state of the net afterwards."""
    model, before = Net(), Net()
    values = answer(model, list(names), scheme, output)
    if isinstance(values, dict):
        values = {name if isinstance(name, str) else Words(f"a {type(name).__name__}"): v for name, v in values.items()}
    return values, state_of(model, before)


# The lines of the key that put the quantized layer in, and the old one back.
PUT_IN = "replace(model, {name: quantized})"
PUT_BACK = "replace(model, {name: layer})"
TRY_IT = f"{PUT_IN}\n            values[name] = measure(model)"


def on_a_copy(ignore):
    """The edit that tries a copy of the model, all of it quantized but for what `ignore` says."""
    return edit(TRY_IT, f"trial = __import__('copy').deepcopy(model); quantize_model(trial, scheme, {ignore}, False)\n            values[name] = measure(trial)")


SENSITIVITY = Exercise(
    id="12.1",
    name="sensitivity",
    key=sensitivity,
    cases=[
        Case("one layer at the top of a net", (["up"], INT2), use=scanned),
        Case("one layer inside a block", (["blocks.1.down"], INT2), use=scanned),
        Case("two layers", (["blocks.0.up", "blocks.0.down"], INT2), use=scanned),
        Case("all five layers at 3 bits, asymmetric", (ALL, INT3), use=scanned),
        Case("three layers in another order", (["up", "blocks.1.up", "blocks.0.down"], INT2), use=scanned),
    ],
    mistakes=[
        Mistake(
            edit(PUT_BACK, "pass"),
            "with every layer left quantized: the next number counts those before it too. Put the layer back, or work on a `copy.deepcopy` (`copy.copy` does not help: it shares the layers)",
        ),
        Mistake(
            edit("    values = {}", "    model = __import__('copy').deepcopy(model)\n    values = {}", PUT_BACK, "pass"),
            "with the layers before still quantized while one is tried: put each back before the next, or take a fresh copy for each name",
        ),
        Mistake(
            edit(PUT_IN, "weight = layer.weight.data; weight.copy_(quantized.qtensor.dequantize())", PUT_BACK, "layer.weight.data.copy_(weight)"),
            "with the rounded weight put back: a weight that is kept aside without `.clone()` is the same memory as the one that is overwritten",
        ),
        Mistake(edit(PUT_BACK, "name != names[-1] and " + PUT_BACK), "with the last layer left quantized: it has to be put back as well"),
        Mistake(edit(PUT_IN, "pass"), "with the float model measured: before the layer is in its place, or another model than the one that was changed"),
        Mistake(edit("measure(model)", "measure(quantized)"), "with the quantized layer measured by itself; `measure` wants the model that it stands in"),
        Mistake(
            edit(PUT_IN, "setattr(model, name, quantized)", PUT_BACK, "setattr(model, name, layer)"),
            'with `setattr(model, "a.b", …)`: it adds a child of that name to the top, and the old layer stays at work; `set_submodule` finds the parent',
        ),
        Mistake(on_a_copy("()"), "with all layers quantized every time; the others should stay as they are"),
        Mistake(on_a_copy("lambda other, _: other == name"), "with the named layer left and all the others quantized: the test is turned"),
        Mistake(on_a_copy("[name]"), "with `ignore=[name]`, which leaves every layer of that name and quantizes all the others: the test is turned"),
        Mistake(on_a_copy("[other for other in names if other != name]"), "with the other names ignored; a layer that is not among `names` is quantized too"),
        Mistake(on_a_copy('lambda other, _: other.rpartition(".")[2] != name.rpartition(".")[2]'), "with every layer quantized whose last name is the same; compare whole names"),
        Mistake(on_a_copy("lambda other, _: not other.endswith(name)"), 'with every layer quantized whose name ends so: a rule "up" in `ignore` means all layers that are called up'),
        Mistake(edit("(layer, scheme,", "(layer, type(scheme)(),"), "with 8 bits, whatever `scheme` says"),
        Mistake(edit("return values", "return {name: value - measure(model) for name, value in values.items()}"), "with the float model's number taken off; give what `measure` says"),
        Mistake(edit("return values", "return {name: measure(model) - value for name, value in values.items()}"), "with the number taken off the float model's; give what `measure` says"),
        Mistake(edit("return values", "return {name: value / measure(model) for name, value in values.items()}"), "with the number divided by the float model's; give what `measure` says"),
        Mistake(edit("return values", "return dict(sorted(values.items(), key=lambda item: item[1], reverse=True))"), "with the names sorted by their numbers; keep the order of `names`"),
        Mistake(edit("in names", "in layers_to_quantize(model, ())"), "with every layer of the model tried, and not just those in `names`"),
        Mistake(edit("    return values", "        return values"), "with a `return` inside the loop, after the first name"),
        Mistake(edit("in names:", "in names:\n        values = {}"), "with a new dictionary for each name: only the last number is left"),
        Mistake(edit("return values", "return list(values.values())"), "with the numbers in a list; give a dictionary {name: number}"),
        Mistake(edit("return values", "return list(values.items())"), "with (name, number) pairs in a list; give a dictionary {name: number}"),
        Mistake(edit("values[name]", 'values[name.rpartition(".")[2]]'), "with the last part of each name as the key: layers of one kind overwrite each other"),
    ],
    parts=("the dictionary", "the model afterwards"),
    hints=[
        "One name at a time: put a quantized layer in the place of the one that is there, measure, and put back what was "
        "there. Or make a fresh copy of the model for each name, and change only the copy.",
        "In place: `layer = model.get_submodule(name)` is what was there, `QLinear.from_linear(layer, scheme)` is what "
        "comes in, and `set_submodule(model, name, …)` changes them, there and back. With a copy: "
        "`quantize_model(trial, scheme, ignore=…)` on `trial = copy.deepcopy(model)`.",
        "`values = {}`, and in the loop over `names`: take the layer, `set_submodule(model, name, "
        "QLinear.from_linear(layer, scheme))`, `values[name] = measure(model)`, `set_submodule(model, name, layer)`. "
        "With `try` and `finally` the layer is put back even if `measure` fails.",
    ],
)


# ---------------------------------------------------------------- 12.2 layers_to_leave

FOUR = ({"q": 0.2, "v": 1.1, "up": 1.0, "down": 3.0}, {"q": 400, "v": 100, "up": 1000, "down": 1000})
HARMLESS = ({"a": -0.5, "b": 0.0, "c": 0.25, "d": 0.5}, {"a": 100, "b": 100, "c": 100, "d": 200})
ALIKE = ({"a": 1.0, "b": 0.5, "c": 2.0, "d": 0.5}, {"a": 400, "b": 200, "c": 800, "d": 200})
STRONG = ({"a": 3.0, "b": 9.0, "c": 4.5}, {"a": 2, "b": 4, "c": 2})
KNAPSACK = ({"a": 6.0, "b": 5.0, "c": 5.0}, {"a": 510, "b": 500, "c": 500})


def takes_the_best_of_all_subsets(damage, price, budget):
    names = layers_to_leave(damage, price, math.inf)
    subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(len(names) + 1))
    fitting = [subset for subset in subsets if sum(price[name] for name in subset) <= budget]
    return list(max(fitting, key=lambda subset: sum(damage[name] for name in subset)))


LAYERS_TO_LEAVE = Exercise(
    id="12.2",
    name="layers_to_leave",
    key=layers_to_leave,
    cases=[
        Case("four layers and 1,200 bytes", (*FOUR, 1200)),
        Case("four layers and 1,100 bytes", (*FOUR, 1100)),
        Case("four layers and 2,600 bytes", (*FOUR, 2600)),
        Case("four layers and 500 bytes", (*FOUR, 500)),
        Case("layers that do no damage", (*HARMLESS, 1000)),
        Case("four layers that do the same damage per byte, and 1,000 bytes", (*ALIKE, 1000)),
        Case("four layers that do the same damage per byte, and 600 bytes", (*ALIKE, 600)),
        Case("three layers that do more damage than they have bytes", (*STRONG, 8)),
        Case("three layers of which two would fit better", (*KNAPSACK, 1000)),
        Case("a budget of 0", (*FOUR, 0)),
    ],
    mistakes=[
        Mistake(edit(", reverse=True", ""), "with the order turned round: the least damage per byte came first"),
        Mistake(edit("damage[name] / price[name]", "damage[name]"), "with the layers sorted by damage alone; a small layer costs less to leave"),
        Mistake(edit("damage[name] / price[name]", "-price[name]"), "with the cheapest layers first, whatever damage they do"),
        Mistake(edit("/ price", "* price"), "with damage times price; damage *per* byte is a quotient"),
        Mistake(edit("damage[name] / price[name]", "price[name] / damage[name]"), "with price divided by damage: bytes per damage, and a damage of 0 divides by 0"),
        Mistake(edit("/ price", "// price"), "with `//`, which rounds every quotient down to a whole number, mostly 0"),
        Mistake(edit("sorted(damage, key=lambda name: damage[name] / price[name], reverse=True)", "damage"), "with the layers taken in the order in which they came"),
        Mistake(edit(", reverse=True)", ")[::-1]"), "with the sorted list turned round by `[::-1]`, which turns ties round as well; `reverse=True` keeps the first of two alike first"),
        Mistake(edit("budget -= price[name]", "budget -= price[name]\n        else:\n            break"), "with `break` at the first layer that does not fit; a smaller one behind it may still"),
        Mistake(edit("price[name] <= budget", "budget > 0"), "with a look at what is left, and not at whether the layer fits into it"),
        Mistake(edit("<= budget", "< budget"), "with `<` for `<=`: a layer that fits exactly fits"),
        Mistake(edit("budget -= price[name]", "pass"), "with each layer held against the whole budget; take off what has been spent"),
        Mistake(edit("-= price[name]", "-= damage[name]"), "with the damage taken off the budget; what is spent is the price"),
        Mistake(edit(" and price[name] <= budget", ""), "without a look at `budget`"),
        Mistake(edit("damage[name] > 0 and ", ""), "with layers taken that do no damage: they gain nothing at 8 bits"),
        Mistake(edit("> 0", ">= 0"), "with `>=` for `>`: a layer with a damage of 0 gains nothing at 8 bits"),
        Mistake(takes_the_best_of_all_subsets, "with every subset tried: here it finds a better one, but 42 layers have four trillion. Greedy was asked for"),
        Mistake(edit("return taken", "return [name for name in damage if name in taken]"), "with the names in the order they came in; give the order of taking"),
        Mistake(edit("return taken", "return sorted(taken)"), "with the names in alphabetical order; give the order of taking"),
        Mistake(edit("return taken", "return [name for name in damage if name not in taken]"), "with the layers that are *not* left at 8 bits"),
        Mistake(edit("return taken", "return sum(price[name] for name in taken)"), "with the bytes that are spent; give the names"),
        Mistake(edit("return taken", "return {name: price[name] for name in taken}"), "with a dictionary; give a list of names"),
        Mistake(edit("    return", "        return"), "with a `return` inside the loop, after the first layer"),
        Mistake(edit("taken.append(name)", "taken.append(name); del damage[name]"), "with names taken out of `damage` itself; whoever called the function still needs it"),
    ],
    hints=[
        "It is like packing a bag with what is worth most for its weight. Which number tells what a layer is worth for its bytes?",
        "Sort the names by `damage[name] / price[name]`, the largest first (`sorted(…, reverse=True)` keeps ties in order). Then go through them once, and remember what is left of the budget.",
        "In the loop: if `damage[name] > 0` and `price[name] <= budget`, append the name and take `price[name]` off the budget. Otherwise just go on with the next.",
    ],
)

EXERCISES = [SENSITIVITY, LAYERS_TO_LEAVE]
