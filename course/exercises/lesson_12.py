"""Exercises of lesson 12: which layers of a model mind, and which to leave at more bits."""

import copy
import itertools

import torch
from torch.nn import Linear, ModuleList

from course.exercises.exercise import Case, Exercise, Mistake, Words
from qlib import QLinear, Scheme, fake_quantize
from qlib.model import layers_to_leave, layers_to_quantize, sensitivity, set_submodule

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
        elif not isinstance(layer, Linear):
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


def with_copies(model, names, scheme, measure, change):
    """{name: number} of a copy of the model for each name, changed by change(copy, name)."""
    values = {}
    for name in names:
        trial = copy.deepcopy(model)
        change(trial, name)
        values[name] = measure(trial)
    return values


def put(model, name, scheme):
    set_submodule(model, name, QLinear.from_linear(model.get_submodule(name), scheme, name))


def quantize_where(model, scheme, wanted):
    for name in filter(wanted, layers_to_quantize(model, ())):
        put(model, name, scheme)


def leaves_them_quantized(model, names, scheme, measure):
    values = {}
    for name in names:
        put(model, name, scheme)
        values[name] = measure(model)
    return values


def piles_up_on_one_copy(model, names, scheme, measure):
    return leaves_them_quantized(copy.deepcopy(model), names, scheme, measure)


def overwrites_the_weights(model, names, scheme, measure):
    values = {}
    for name in names:
        weight = model.get_submodule(name).weight.data
        old = weight
        weight.copy_(fake_quantize(weight, scheme))
        values[name] = measure(model)
        weight.copy_(old)
    return values


def forgets_the_last(model, names, scheme, measure):
    values, before = {}, None
    for name in names:
        if before is not None:
            set_submodule(model, *before)
        before = name, model.get_submodule(name)
        put(model, name, scheme)
        values[name] = measure(model)
    return values


def measures_first(model, names, scheme, measure):
    return {name: measure(model) for name in names}


def sets_dotted_names(model, names, scheme, measure):
    def change(trial, name):
        setattr(trial, name, QLinear.from_linear(trial.get_submodule(name), scheme, name))

    return with_copies(model, names, scheme, measure, change)


def quantizes_all(model, names, scheme, measure):
    return with_copies(model, names, scheme, measure, lambda trial, _: quantize_where(trial, scheme, lambda n: True))


def quantizes_all_but_the_one(model, names, scheme, measure):
    def change(trial, name):
        quantize_where(trial, scheme, lambda other: other != name)

    return with_copies(model, names, scheme, measure, change)


def quantizes_all_of_the_kind(model, names, scheme, measure):
    def change(trial, name):
        quantize_where(trial, scheme, lambda other: other.rpartition(".")[2] == name.rpartition(".")[2])

    return with_copies(model, names, scheme, measure, change)


def quantizes_names_that_end_alike(model, names, scheme, measure):
    def change(trial, name):
        quantize_where(trial, scheme, lambda other: other.endswith(name))

    return with_copies(model, names, scheme, measure, change)


def takes_8_bits(model, names, scheme, measure):
    return sensitivity(model, names, Scheme(), measure)


def gives_the_difference(model, names, scheme, measure):
    base = measure(model)
    return {name: value - base for name, value in sensitivity(model, names, scheme, measure).items()}


def gives_the_difference_the_other_way(model, names, scheme, measure):
    base = measure(model)
    return {name: base - value for name, value in sensitivity(model, names, scheme, measure).items()}


def gives_the_ratio(model, names, scheme, measure):
    base = measure(model)
    return {name: value / base for name, value in sensitivity(model, names, scheme, measure).items()}


def sorts_the_names(model, names, scheme, measure):
    values = sensitivity(model, names, scheme, measure)
    return dict(sorted(values.items(), key=lambda item: item[1], reverse=True))


def scans_every_layer(model, names, scheme, measure):
    return sensitivity(model, layers_to_quantize(model, ()), scheme, measure)


def stops_after_one(model, names, scheme, measure):
    for name in names:
        return sensitivity(model, [name], scheme, measure)


def keeps_the_last_one(model, names, scheme, measure):
    for name in names:
        values = sensitivity(model, [name], scheme, measure)
    return values


def gives_a_list(model, names, scheme, measure):
    return list(sensitivity(model, names, scheme, measure).values())


def gives_pairs(model, names, scheme, measure):
    return list(sensitivity(model, names, scheme, measure).items())


def names_by_kind(model, names, scheme, measure):
    return {name.rpartition(".")[2]: value for name, value in sensitivity(model, names, scheme, measure).items()}


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
            leaves_them_quantized,
            "with every layer left quantized: the next number counts those before it too. Put the layer back, or work on "
            "a `copy.deepcopy` (`copy.copy` does not help: it shares the layers)",
        ),
        Mistake(
            piles_up_on_one_copy,
            "with the layers before still quantized while one is tried: put each back before the next, or take a fresh "
            "copy for each name",
        ),
        Mistake(
            overwrites_the_weights,
            "with the rounded weight put back: a weight that is kept aside without `.clone()` is the same memory as the "
            "one that is overwritten",
        ),
        Mistake(forgets_the_last, "with the last layer left quantized: it has to be put back as well"),
        Mistake(
            measures_first,
            "with the float model measured: before the layer is in its place, or another model than the one that was "
            "changed",
        ),
        Mistake(
            sets_dotted_names,
            'with `setattr(model, "a.b", …)`: it adds a child of that name to the top, and the old layer stays at work; '
            "`set_submodule` finds the parent",
        ),
        Mistake(quantizes_all, "with all layers quantized every time; the others should stay as they are"),
        Mistake(
            quantizes_all_but_the_one, "with the named layer left and all the others quantized: the test is turned"
        ),
        Mistake(
            quantizes_all_of_the_kind,
            "with every layer quantized whose last name is the same; compare whole names",
        ),
        Mistake(
            quantizes_names_that_end_alike,
            'with every layer quantized whose name ends so: a rule "up" in `ignore` means all layers that are called up',
        ),
        Mistake(takes_8_bits, "with 8 bits, whatever `scheme` says"),
        Mistake(gives_the_difference, "with the float model's number taken off; give what `measure` says"),
        Mistake(
            gives_the_difference_the_other_way,
            "with the number taken off the float model's; give what `measure` says",
        ),
        Mistake(gives_the_ratio, "with the number divided by the float model's; give what `measure` says"),
        Mistake(sorts_the_names, "with the names sorted by their numbers; keep the order of `names`"),
        Mistake(scans_every_layer, "with every layer of the model tried, and not just those in `names`"),
        Mistake(stops_after_one, "with a `return` inside the loop, after the first name"),
        Mistake(keeps_the_last_one, "with a new dictionary for each name: only the last number is left"),
        Mistake(gives_a_list, "with the numbers in a list; give a dictionary {name: number}"),
        Mistake(gives_pairs, "with (name, number) pairs in a list; give a dictionary {name: number}"),
        Mistake(names_by_kind, "with the last part of each name as the key: layers of one kind overwrite each other"),
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


def greedy(damage, price, budget, order=None, worth=lambda d: d > 0, fits=lambda p, left: p <= left, spend=True):
    """A right answer whose parts the mistakes below replace one at a time."""
    taken = []
    for name in by_density(damage, price) if order is None else order:
        if worth(damage[name]) and fits(price[name], budget):
            taken.append(name)
            budget -= price[name] if spend else 0
    return taken


def by_density(damage, price):
    return sorted(damage, key=lambda name: damage[name] / price[name], reverse=True)


def sorts_ascending(damage, price, budget):
    return greedy(damage, price, budget, by_density(damage, price)[::-1])


def sorts_by_damage(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=damage.get, reverse=True))


def sorts_by_price(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=price.get))


def sorts_by_the_product(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=lambda n: damage[n] * price[n], reverse=True))


def divides_the_other_way(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=lambda n: price[n] / damage[n], reverse=True))


def divides_whole_numbers(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=lambda n: damage[n] // price[n], reverse=True))


def does_not_sort(damage, price, budget):
    return greedy(damage, price, budget, list(damage))


def turns_ties_round(damage, price, budget):
    return greedy(damage, price, budget, sorted(damage, key=lambda n: damage[n] / price[n])[::-1])


def stops_at_the_first_that_does_not_fit(damage, price, budget):
    taken = []
    for name in by_density(damage, price):
        if damage[name] <= 0 or price[name] > budget:
            break
        taken.append(name)
        budget -= price[name]
    return taken


def goes_over_the_budget(damage, price, budget):
    return greedy(damage, price, budget, fits=lambda p, left: left > 0)


def wants_bytes_left_over(damage, price, budget):
    return greedy(damage, price, budget, fits=lambda p, left: p < left)


def never_spends(damage, price, budget):
    return greedy(damage, price, budget, spend=False)


def knows_no_budget(damage, price, budget):
    return greedy(damage, price, budget, fits=lambda p, left: True)


def takes_harmless_ones(damage, price, budget):
    return greedy(damage, price, budget, worth=lambda d: True)


def takes_those_that_do_nothing(damage, price, budget):
    return greedy(damage, price, budget, worth=lambda d: d >= 0)


def takes_the_best_of_all_subsets(damage, price, budget):
    subsets = itertools.chain.from_iterable(itertools.combinations(damage, n) for n in range(len(damage) + 1))
    fitting = [names for names in subsets if sum(price[n] for n in names) <= budget]
    best = max(fitting, key=lambda names: sum(damage[n] for n in names))
    return [name for name in by_density(damage, price) if name in best]


def gives_the_order_of_the_model(damage, price, budget):
    taken = greedy(damage, price, budget)
    return [name for name in damage if name in taken]


def gives_what_is_not_taken(damage, price, budget):
    taken = greedy(damage, price, budget)
    return [name for name in damage if name not in taken]


def gives_the_bytes(damage, price, budget):
    return sum(price[name] for name in greedy(damage, price, budget))


def gives_a_dictionary(damage, price, budget):
    return {name: price[name] for name in greedy(damage, price, budget)}


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
        Case("three layers that do more damage than they have bytes", (*STRONG, 100)),
        Case("three layers of which two would fit better", (*KNAPSACK, 1000)),
        Case("a budget of 0", (*FOUR, 0)),
    ],
    mistakes=[
        Mistake(sorts_ascending, "with the order turned round: the least damage per byte came first"),
        Mistake(sorts_by_damage, "with the layers sorted by damage alone; a small layer costs less to leave"),
        Mistake(sorts_by_price, "with the cheapest layers first, whatever damage they do"),
        Mistake(sorts_by_the_product, "with damage times price; damage *per* byte is a quotient"),
        Mistake(
            divides_the_other_way, "with price divided by damage: bytes per damage, and a damage of 0 divides by 0"
        ),
        Mistake(divides_whole_numbers, "with `//`, which rounds every quotient down to a whole number, mostly 0"),
        Mistake(does_not_sort, "with the layers taken in the order in which they came"),
        Mistake(
            turns_ties_round,
            "with the sorted list turned round by `[::-1]`, which turns ties round as well; `reverse=True` keeps the "
            "first of two alike first",
        ),
        Mistake(
            stops_at_the_first_that_does_not_fit,
            "with `break` at the first layer that does not fit; a smaller one behind it may still",
        ),
        Mistake(goes_over_the_budget, "with a look at what is left, and not at whether the layer fits into it"),
        Mistake(wants_bytes_left_over, "with `<` for `<=`: a layer that fits exactly fits"),
        Mistake(never_spends, "with each layer held against the whole budget; take off what has been spent"),
        Mistake(knows_no_budget, "without a look at `budget`"),
        Mistake(takes_harmless_ones, "with layers taken that do no damage: they gain nothing at 8 bits"),
        Mistake(takes_those_that_do_nothing, "with `>=` for `>`: a layer with a damage of 0 gains nothing at 8 bits"),
        Mistake(
            takes_the_best_of_all_subsets,
            "with every subset tried: here it finds a better one, but 42 layers have four trillion. Greedy was asked for",
        ),
        Mistake(gives_the_order_of_the_model, "with the names in the order they came in; give the order of taking"),
        Mistake(gives_what_is_not_taken, "with the layers that are *not* left at 8 bits"),
        Mistake(gives_the_bytes, "with the bytes that are spent; give the names"),
        Mistake(gives_a_dictionary, "with a dictionary; give a list of names"),
    ],
    hints=[
        "It is like packing a bag with what is worth most for its weight. Which number tells what a layer is worth for "
        "its bytes?",
        "Sort the names by `damage[name] / price[name]`, the largest first (`sorted(…, reverse=True)` keeps ties in "
        "order). Then go through them once, and remember what is left of the budget.",
        "In the loop: if `damage[name] > 0` and `price[name] <= budget`, append the name and take `price[name]` off the "
        "budget. Otherwise just go on with the next.",
    ],
)

EXERCISES = [SENSITIVITY, LAYERS_TO_LEAVE]
