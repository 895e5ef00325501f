"""Trains the convolutional net of lesson 9 on with weights of 2 bits, for data/digits_qat.

    python scripts/train_digits_qat.py

Training is in float64, on one thread and from a fixed seed, so that the nets hardly depend on the machine; what is
stored, and measured, are 2-bit integers and float32. Takes about twenty seconds.
"""

import torch
from torch.nn.functional import cross_entropy

from course.models import DATA, accuracy, load_digits, load_digits_conv, load_digits_qat
from qlib.console import progress_bar
from qlib.files import save_tensors
from qlib.methods.qat import convert_qat, prepare_qat
from qlib.scheme import Scheme

SCHEMES = {"per-tensor": Scheme(bits=2, axis=None), "per-row": Scheme(bits=2)}
EPOCHS, BATCH = 40, 96


def train(net, scheme, pictures, labels, epochs=EPOCHS, seed=0):
    """A float net, trained on with its weights rounded.

    Args:
        net: a torch.nn.Sequential in evaluation mode; it stays as it is.
        scheme: of its weights.
        pictures, labels: float32 of shape (n, 8, 8), and int64 of shape (n,).

    Returns:
        what `prepare_qat` gives, in float32 and evaluation mode.
    """
    net, pictures = prepare_qat(net, scheme).double(), pictures.double()
    torch.manual_seed(seed)
    batches = len(pictures) // BATCH
    # Not Adam: it moves every weight by as much, and the largest is the ruler of all the others.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for _ in progress_bar(range(epochs), f"training, {scheme}"):
        for batch in torch.randperm(len(pictures))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.float().eval().requires_grad_(False)


def main():
    torch.set_num_threads(1)
    training, held_out = load_digits()
    for name, scheme in SCHEMES.items():
        rounded, trained = prepare_qat(load_digits_conv(), scheme).eval(), train(load_digits_conv(), scheme, *training)
        save_tensors(convert_qat(trained), DATA / "digits_qat" / f"{name}.safetensors")
        nets = {"rounded": rounded, "trained on": trained, "read from the file": load_digits_qat(name)}
        for how, net in nets.items():
            right = [round(accuracy(net, *part) * len(part[1])) for part in (training, held_out)]
            print(f"{scheme}, {how}: {right[0]} of 1437 training and {right[1]} of 360 held-out pictures right")


if __name__ == "__main__":
    main()
