"""Right answers of lesson 12, written differently from the library's."""

import copy

import torch

from qlib import QLinear, fake_quantize, quantize_model


def sensitivity_on_copies(model, names, scheme, measure):
    values = {}
    for name in names:
        trial = copy.deepcopy(model)
        quantize_model(trial, scheme, ignore=lambda other, layer, name=name: other != name, progress=False)
        values[name] = measure(trial)
    return values


def sensitivity_by_setattr(model, names, scheme, measure):
    def tried(name):
        path, _, child = name.rpartition(".")
        parent = model.get_submodule(path)
        old = getattr(parent, child)
        setattr(parent, child, QLinear.from_linear(old, scheme))
        value = measure(model)
        setattr(parent, child, old)
        return value

    return {name: tried(name) for name in names}


def sensitivity_of_rounded_weights(model, names, scheme, measure):
    values = {}
    with torch.no_grad():
        for name in names:
            weight = model.get_submodule(name).weight
            old = weight.clone()
            weight.copy_(fake_quantize(old, scheme))
            values[name] = measure(model)
            weight.copy_(old)
    return values


def leave_by_spending(damage, price, budget):
    spent, names = 0, []
    for name, harm in sorted(damage.items(), key=lambda item: -item[1] / price[item[0]]):
        if harm <= 0:
            continue
        if spent + price[name] <= budget:
            spent += price[name]
            names += [name]
    return names


def leave_the_best_that_still_fits(damage, price, budget):
    left, names = dict(damage), []
    while True:
        fitting = {name: harm / price[name] for name, harm in left.items() if harm > 0 and price[name] <= budget}
        if not fitting:
            return names
        name = max(fitting, key=fitting.get)
        names.append(name)
        budget -= price[name]
        del left[name]


ANSWERS = {
    "12.1": [sensitivity_on_copies, sensitivity_by_setattr, sensitivity_of_rounded_weights],
    "12.2": [leave_by_spending, leave_the_best_that_still_fits],
}
