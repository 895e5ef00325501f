"""QAT: values and gradients are PyTorch's, the net is prepared and converted whole, and the stored nets are as said."""

import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from course.models import DATA, accuracy, load_digits, load_digits_conv, load_digits_qat
from qlib import QTensor, Scheme, choose_qparams, fake_quantize, load_tensors, quant_range, save_tensors
from qlib.methods import FakeQuantize, StraightThrough, convert_qat, prepare_qat
from qlib.methods.static import fuse_batch_norms, integer_net

pytestmark = pytest.mark.filterwarnings("ignore:.*fake_quantize.*")
TWO_BITS = Scheme(bits=2, axis=None)
SCHEMES = {"per-tensor": TWO_BITS, "per-row": Scheme(bits=2)}
RIGHT = {"per-tensor": (55, 345), "per-row": (164, 347)}  # held-out pictures: rounded, and trained on


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gradient(function, weight, upstream):
    weight = weight.clone().requires_grad_(True)
    out = function(weight)
    out.backward(upstream)
    return out.detach(), weight.grad


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(6, 40), (1, 7), (4, 3, 3, 3)])
@pytest.mark.parametrize("squeeze", [1.0, 0.4], ids=["nothing clipped", "much clipped"])
def test_values_and_gradients_are_those_of_pytorch_per_row(bits, shape, squeeze):
    weight, upstream = normal(*shape), normal(*shape).flip(0)
    scale, zero_point = choose_qparams(weight, Scheme(bits, symmetric=False))
    scale = scale * squeeze
    ours = gradient(lambda w: StraightThrough.apply(w, scale, zero_point, bits), weight, upstream)

    def torchs(w):
        rows = (scale.flatten(), zero_point.flatten().int())
        return torch.fake_quantize_per_channel_affine(w, *rows, 0, *quant_range(bits))

    theirs = gradient(torchs, weight, upstream)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(ours[1], theirs[1])
    assert (ours[1] == 0).any() == (squeeze < 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("squeeze", [1.0, 0.4], ids=["nothing clipped", "much clipped"])
def test_values_and_gradients_are_those_of_pytorch_per_tensor(bits, squeeze):
    weight, upstream = normal(6, 40), normal(6, 40).flip(0)
    scale, zero_point = choose_qparams(weight, Scheme(bits, axis=None))
    scale = scale * squeeze
    ours = gradient(lambda w: StraightThrough.apply(w, scale, zero_point, bits), weight, upstream)
    theirs = gradient(
        lambda w: torch.fake_quantize_per_tensor_affine(w, scale, zero_point.int(), *quant_range(bits)),
        weight,
        upstream,
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "scheme", [TWO_BITS, Scheme(4, False), Scheme(3, False, group_size=16), Scheme(4, axis=1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_forward_is_fake_quantize_in_the_weights_own_dtype(scheme, dtype):
    weight = normal(5, 40).to(dtype)
    out = FakeQuantize(scheme)(weight)
    assert out.dtype == dtype
    assert torch.equal(out, fake_quantize(weight, scheme).to(dtype))


def test_a_weight_of_zeros_stays_zero_and_still_learns():
    out, grad = gradient(FakeQuantize(TWO_BITS), torch.zeros(2, 8), torch.ones(2, 8))
    assert (out == 0).all() and (grad == 1).all()


def test_a_prepared_net_computes_as_the_rounded_one_and_leaves_the_other_alone():
    net, (_, (pictures, _)) = load_digits_conv(), load_digits()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    prepared = prepare_qat(net, Scheme(4))
    rounded = fuse_batch_norms(net)
    for layer in (rounded.conv1, rounded.conv2, rounded.linear):
        layer.weight.data = fake_quantize(layer.weight.data, Scheme(4))
    assert torch.equal(prepared(pictures[:9]), rounded(pictures[:9]))
    assert prepared.training and all(parameter.requires_grad for parameter in prepared.parameters())
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in prepared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_only_a_sequential_in_evaluation_mode_can_be_prepared():
    with pytest.raises(ValueError, match=r"call net\.eval"):
        prepare_qat(load_digits_conv().train(), TWO_BITS)
    with pytest.raises(TypeError, match="not a Linear"):
        prepare_qat(torch.nn.Linear(2, 2), TWO_BITS)


def test_a_few_steps_make_a_broken_net_better_and_what_is_saved_is_what_was_trained(tmp_path):
    (pictures, labels), _ = load_digits()
    net = prepare_qat(load_digits_conv(), TWO_BITS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = cross_entropy(net(pictures[:200]), labels[:200])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]

    save_tensors(convert_qat(net), tmp_path / "net.safetensors")
    tensors = load_tensors(tmp_path / "net.safetensors")
    assert {name for name, t in tensors.items() if isinstance(t, QTensor)} == {
        f"{n}.weight" for n in ("conv1", "conv2", "linear")
    }
    plain = fuse_batch_norms(load_digits_conv())
    plain.load_state_dict({name: t.dequantize() if isinstance(t, QTensor) else t for name, t in tensors.items()})
    assert torch.equal(plain(pictures[:9]), net(pictures[:9]))


# ---------------------------------------------------------------- the stored nets


@pytest.mark.parametrize("name", SCHEMES)
def test_the_stored_nets_read_as_many_pictures_as_the_card_says(name):
    _, held_out = load_digits()
    rounded = prepare_qat(load_digits_conv(), SCHEMES[name]).eval()
    right = tuple(round(accuracy(net, *held_out) * 360) for net in (rounded, load_digits_qat(name)))
    assert right == RIGHT[name]
    card = (DATA / "digits_qat" / "README.md").read_text()
    assert re.search(rf"`{name}.safetensors` .*\| {right[0]} .*\| {right[1]} ", card)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_stored_weights_have_two_bits_and_survive_being_rounded_again(name):
    tensors = load_tensors(DATA / "digits_qat" / f"{name}.safetensors")
    quantized = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, QTensor)}
    assert len(quantized) == 3 and all(qtensor.scheme == SCHEMES[name] for qtensor in quantized.values())
    for qtensor in quantized.values():
        assert torch.equal(fake_quantize(qtensor.dequantize(), SCHEMES[name]), qtensor.dequantize())


@pytest.mark.parametrize("name", SCHEMES)
def test_in_integers_with_activations_of_8_bits_the_stored_nets_read_as_well(name):
    _, held_out = load_digits()
    assert accuracy(integer_net(load_digits_qat(name), SCHEMES[name]), *held_out) * 360 >= RIGHT[name][1] - 2
