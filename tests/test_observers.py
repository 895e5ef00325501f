"""Observers find the ranges that they promise, beside PyTorch's and NumPy's own; calibration leaves no trace."""

import functools
import warnings

import numpy as np
import pytest
import torch

from qlib.affine import asymmetric_qparams
from qlib.observers import MSE, MinMax, MovingAverage, Percentile, calibrate, percentile_range, range_error

ALL = [MinMax, MovingAverage, Percentile, MSE]
BATCHES = [torch.linspace(-1.5 - i, 2.0 + i * i, 40).reshape(4, 10) * (-1) ** i for i in range(5)]


def watched(observer, batches=BATCHES):
    for batch in batches:
        observer.observe(batch)
    return observer


def ends(observer):
    return tuple(end.item() for end in observer.range())


# ---------------------------------------------------------------- against PyTorch's and NumPy's


def pytorchs(name, **options):
    """One of PyTorch's observers, after the same batches: (low, high)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        observer = getattr(torch.ao.quantization, name)(**options)
        for batch in BATCHES:
            observer(batch)
    return observer.min_val.item(), observer.max_val.item()


def test_min_max_is_pytorchs():
    assert ends(watched(MinMax())) == pytorchs("MinMaxObserver")


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5, 1.0])
def test_the_moving_average_is_pytorchs(momentum):
    theirs = pytorchs("MovingAverageMinMaxObserver", averaging_constant=momentum)
    assert ends(watched(MovingAverage(momentum))) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("percent", [50, 90, 99, 99.9, 100])
def test_a_percentile_is_numpys(percent):
    values = torch.cat([batch.flatten() for batch in BATCHES]).double()
    observer = watched(Percentile(percent), [batch.double() for batch in BATCHES])
    assert ends(observer) == pytest.approx(tuple(np.percentile(values.numpy(), [100 - percent, percent])))
    assert ends(observer) == tuple(end.item() for end in percentile_range(values, percent))


def test_scale_and_zero_point_of_a_range_are_pytorchs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.ao.quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
        for batch in BATCHES:
            theirs(batch)
        scale, zero_point = theirs.calculate_qparams()
    ours = asymmetric_qparams(*watched(MinMax()).range())
    assert (ours[0].item(), ours[1].item()) == (pytest.approx(scale.item()), zero_point.item())


# ---------------------------------------------------------------- what each is for


def test_one_odd_batch_sets_min_max_for_good_and_the_moving_average_for_a_while():
    stream = [torch.tensor([0.0, 2.0])] * 5 + [torch.tensor([0.0, 9.0])] + [torch.tensor([0.0, 2.0])] * 20
    assert ends(watched(MinMax(), stream)) == (0, 9)
    assert ends(watched(MovingAverage(), stream))[1] == pytest.approx(2 + 0.7 * 0.9**20)


def test_no_range_that_is_tried_has_less_error_than_the_one_mse_finds():
    values = torch.cat([torch.linspace(-1, 1, 500), torch.tensor([6.0, -4.0])]).double()
    for bits in (2, 3, 4, 8):
        found = watched(MSE(bits), [values]).range()
        tried = [(values.amin() * k / 100, values.amax() * k / 100) for k in range(1, 101)]
        assert range_error(values, *found, bits) == min(range_error(values, *ends, bits) for ends in tried)


def test_the_fewer_the_bits_the_more_mse_clips():
    values = torch.cat([torch.linspace(0, 1, 500) ** 3, torch.tensor([3.0])]).double()
    tops = [ends(watched(MSE(bits), [values]))[1] for bits in (8, 4, 3, 2)]
    assert tops == sorted(tops, reverse=True) and tops[0] > tops[-1]


@pytest.mark.parametrize("observer", ALL)
def test_a_constant_and_an_all_zero_stream_give_a_range_that_can_be_used(observer):
    for value in (0.0, 3.0, -2.0):
        low, high = watched(observer(), [torch.full((2, 3), value)]).range()
        scale, zero_point = asymmetric_qparams(low, high)
        assert torch.isfinite(scale) and scale > 0
        assert -128 <= zero_point <= 127


# ---------------------------------------------------------------- calibrate


class TwoBranches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.block = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3))
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.block(self.conv(x))


def hooks_of(model):
    return [hook for layer in model.modules() for hook in layer._forward_pre_hooks]


def test_each_layer_that_runs_has_its_own_observer_of_its_inputs():
    model, x = TwoBranches(), torch.linspace(-1, 2, 32).reshape(2, 1, 4, 4)
    with calibrate(model) as observers:
        model(x)
        model(2 * x)
    assert list(observers) == ["conv", "block.2"]
    assert ends(observers["conv"]) == (-2, 4)
    inner = torch.cat([torch.relu(model.conv(x)), torch.relu(model.conv(2 * x))])
    assert ends(observers["block.2"]) == (inner.min().item(), inner.max().item())


def test_the_hooks_are_gone_after_the_block_and_nothing_more_is_seen():
    model = TwoBranches()
    with calibrate(model) as observers:
        assert len(hooks_of(model)) == 3
        model(torch.ones(1, 1, 4, 4))
    assert hooks_of(model) == []
    model(100 * torch.ones(1, 1, 4, 4))
    assert ends(observers["conv"]) == (1, 1)


def test_the_hooks_are_gone_after_an_exception_too():
    model = TwoBranches()
    with pytest.raises(RuntimeError, match="in the middle"), calibrate(model):
        model(torch.ones(1, 1, 4, 4))
        raise RuntimeError("in the middle")
    assert hooks_of(model) == []


def test_a_hook_of_the_users_own_stays():
    model, calls = TwoBranches(), []
    model.conv.register_forward_pre_hook(lambda layer, inputs: calls.append(1))
    with calibrate(model):
        model(torch.ones(1, 1, 4, 4))
    model(torch.ones(1, 1, 4, 4))
    assert len(calls) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_no_number_is_refused_by_the_layers_name_and_leaves_no_hook(bad):
    model, x = TwoBranches(), torch.ones(1, 1, 4, 4)
    x[0, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="the input of layer 'conv' holds a NaN or an infinity"), calibrate(model):
        model(x)
    assert hooks_of(model) == []


def test_an_observer_may_be_made_with_arguments_and_keeps_no_graph():
    model = TwoBranches()
    with calibrate(model, functools.partial(Percentile, percent=90)) as observers:
        model(torch.linspace(0, 1, 16).reshape(1, 1, 4, 4).requires_grad_())
    assert observers["conv"].percent == 90
    assert ends(observers["conv"]) == pytest.approx((0.1, 0.9))
    assert not any(seen.requires_grad for seen in observers["block.2"].seen)
