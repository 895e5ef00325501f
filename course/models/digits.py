"""Small networks that read handwritten digits: fully connected ones and a convolutional one."""

import collections
import itertools

import safetensors.torch
import torch

from course.models.loading import DATA
from qlib.files import load_tensors
from qlib.methods.static import fuse_batch_norms
from qlib.tensor import QTensor


def load_digits():
    """The 1797 handwritten digits that ship inside scikit-learn, cut into two parts that never change.

    Every fifth picture, the first one included, is held out: 360 to measure on and 1437 to train on.

    Returns:
        (train, held_out), each a pair (pictures, labels): float32 of shape (n, 8, 8), from 0 (paper) to 1 (ink) in
        sixteenths, and int64 of shape (n,), from 0 to 9.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    pictures, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()
    held_out = torch.arange(len(labels)) % 5 == 0
    return (pictures[~held_out], labels[~held_out]), (pictures[held_out], labels[held_out])


def small_net(*sizes):
    """A fully connected net with a ReLU between its layers; small_net(64, 16, 10) turns 64 pixels into 10 scores."""
    layers = [torch.nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def load_small_net(name, seed=0):
    """One of the small nets that scripts/train_digits.py trained on the digits; its card is data/digits/README.md.

    Args:
        name: a file of data/digits: "teacher", or "student-labels-144", "student-teacher-144", "student-labels-1437",
            "student-teacher-1437", which say what a student learnt from and on how many pictures.
        seed: which of the file's nets, 0 to 9 for a student; the teacher has but one.

    Returns:
        a `small_net` in evaluation mode, float32.

    Raises:
        FileNotFoundError: there is no such file.
        IndexError: the file holds fewer nets.
    """
    stacked = safetensors.torch.load_file(DATA / "digits" / f"{name}.safetensors")
    weights = {key: tensor[seed].clone() for key, tensor in stacked.items()}
    matrices = [weights[key] for key in sorted(weights) if weights[key].ndim == 2]
    net = small_net(matrices[0].shape[1], *(len(matrix) for matrix in matrices))
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def digits_conv_net():
    """A small convolutional net for the digits, with the random weights PyTorch gives it: 3,842 parameters.

    Two convolutions, each with a batch norm and a ReLU after it, then a linear layer. It takes pictures of shape
    (n, 8, 8) and gives scores of shape (n, 10); its layers go by the names that lesson 9 uses.
    """
    layers = {
        "picture": torch.nn.Unflatten(1, (1, 8)),  # a channel of its own: (n, 8, 8) becomes (n, 1, 8, 8)
        "conv1": torch.nn.Conv2d(1, 8, 3, padding=1, bias=False),
        "bn1": torch.nn.BatchNorm2d(8),
        "relu1": torch.nn.ReLU(),
        "conv2": torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        "bn2": torch.nn.BatchNorm2d(16),
        "relu2": torch.nn.ReLU(),
        "flatten": torch.nn.Flatten(),
        "linear": torch.nn.Linear(256, 10),
    }
    return torch.nn.Sequential(collections.OrderedDict(layers))


def load_digits_conv():
    """The `digits_conv_net` that scripts/train_digits_conv.py trained; its card is data/digits_conv/README.md.

    Returns:
        a torch.nn.Sequential in evaluation mode, float32.
    """
    net = digits_conv_net()
    net.load_state_dict(safetensors.torch.load_file(DATA / "digits_conv" / "net.safetensors"))
    return net.eval().requires_grad_(False)


def load_digits_qat(name="per-tensor"):
    """A `digits_conv_net` that scripts/train_digits_qat.py trained on with weights of 2 bits.

    Its card is data/digits_qat/README.md. The file holds integers; `qlib.load_tensors` gives them as QTensors.

    Args:
        name: "per-tensor" or "per-row", which say what shares a scale.

    Returns:
        a torch.nn.Sequential without batch norms, in evaluation mode, float32; its weights lie on the 2-bit grid.

    Raises:
        FileNotFoundError: there is no such file.
    """
    net = fuse_batch_norms(digits_conv_net().eval())
    tensors = load_tensors(DATA / "digits_qat" / f"{name}.safetensors")
    floats = {key: tensor.dequantize() if isinstance(tensor, QTensor) else tensor for key, tensor in tensors.items()}
    net.load_state_dict(floats)
    return net.requires_grad_(False)


def accuracy(net, pictures, labels):
    """The share of pictures for which the largest of the net's scores is the right one's: a float from 0 to 1."""
    with torch.inference_mode():
        return (net(pictures).argmax(-1) == labels).double().mean().item()
