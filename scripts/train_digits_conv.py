"""Trains the small convolutional net of lesson 9 on the digits that ship in scikit-learn, for data/digits_conv.

    python scripts/train_digits_conv.py

Training is in float64, on one thread and from a fixed seed, so that the net hardly depends on the machine; what is
stored, and measured, is float32. Takes a few seconds.
"""

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from course.models import DATA, accuracy, digits_conv_net, load_digits

EPOCHS, BATCH = 20, 96


def train(pictures, labels, seed=0):
    """The net, trained from scratch on float32 pictures of shape (n, 8, 8); returned in float32, for evaluation."""
    torch.manual_seed(seed)
    net, pictures = digits_conv_net().double(), pictures.double()
    batches = len(pictures) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pictures))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.float().eval().requires_grad_(False)


def main():
    torch.set_num_threads(1)
    training, held_out = load_digits()
    net = train(*training)
    folder = DATA / "digits_conv"
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / "net.safetensors", metadata={"format": "pt"})
    for name, (pictures, labels) in (("training", training), ("held-out", held_out)):
        print(f"{round(accuracy(net, pictures, labels) * len(labels))} of {len(labels)} {name} pictures right")


if __name__ == "__main__":
    main()
