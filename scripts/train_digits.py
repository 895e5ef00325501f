"""Trains the small nets of lesson 2 on the digits that ship in scikit-learn and writes them to data/digits.

    python scripts/train_digits.py

One teacher, and ten students of each of four kinds: taught by the labels or by the teacher, on 144 pictures or on all
1437. Training is in float64, on one thread and on all the pictures at once, from fixed seeds, so that the nets
hardly depend on the machine; what is stored, and measured, is float32. Takes about 20 seconds.
"""

import copy
import functools

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, softmax

from course.models import DATA, accuracy, load_digits, small_net

TEACHER, STUDENT = (64, 64, 32, 10), (64, 16, 10)
SEEDS = range(10)
FEW = 10  # of the training pictures, every tenth goes to those students that see few
TEMPERATURE = 4.0


def distillation_loss(scores, teacher_scores, temperature=TEMPERATURE):
    """How far a student's softened answers are from the teacher's: Hinton et al. 2015 (arXiv:1503.02531), section 2.

    Args:
        scores, teacher_scores: tensors of shape (n, 10), the outputs of the two nets.
        temperature: what the scores are divided by before the softmax.

    Returns:
        the mean cross-entropy, times temperature**2 to keep the gradients at one size whatever the temperature.
    """
    teacher_answers = softmax(teacher_scores / temperature, dim=-1)
    return temperature**2 * cross_entropy(scores / temperature, teacher_answers)


def train(sizes, pictures, loss, seed, steps=300):
    """A small net of these layer sizes, trained from scratch.

    Args:
        sizes: inputs, widths of the hidden layers, outputs.
        pictures: float32 tensor of shape (n, 8, 8).
        loss: loss(scores) is what to make small; scores are float64 of shape (n, 10).
        seed: what the first weights are drawn from.
        steps: how many steps of AdamW, each over all the pictures; the learning rate sinks from 0.01 to 0.

    Returns:
        the net in float32.
    """
    torch.manual_seed(seed)
    net, pictures = small_net(*sizes).double(), pictures.double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(pictures)).backward()
        optimizer.step()
        schedule.step()
    return net.float().requires_grad_(False)


def train_teacher():
    """The net that the lesson shrinks, taught by the labels of all the training pictures."""
    (pictures, labels), _ = load_digits()
    return train(TEACHER, pictures, functools.partial(cross_entropy, target=labels), seed=0)


def train_students(teacher, every, taught_by):
    """Ten students that see every `every`-th training picture, taught by its "labels" or by the "teacher" alone."""
    (pictures, labels), _ = load_digits()
    pictures, labels = pictures[::every], labels[::every]
    if taught_by == "labels":
        loss = functools.partial(cross_entropy, target=labels)
    else:
        teacher_scores = copy.deepcopy(teacher).double()(pictures.double())
        loss = functools.partial(distillation_loss, teacher_scores=teacher_scores)
    return [train(STUDENT, pictures, loss, seed) for seed in SEEDS]


def save_nets(name, nets):
    """Write nets of one shape to data/digits/NAME.safetensors, their weights stacked, and say how well they do."""
    states = [net.state_dict() for net in nets]
    stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    # Not by qlib.save_tensors: it writes its notes in any order, and here the same nets should be the same file.
    save_file(stacked, DATA / "digits" / f"{name}.safetensors", metadata={"format": "pt"})
    _, (pictures, labels) = load_digits()
    right = [round(accuracy(net, pictures, labels) * len(labels)) for net in nets]
    print(f"{name}: {right} of {len(labels)} held-out pictures right, {sum(right) / len(right):.1f} on average")


def main():
    torch.set_num_threads(1)
    teacher = train_teacher()
    save_nets("teacher", [teacher])
    for every, count in ((FEW, 144), (1, 1437)):
        for taught_by in ("labels", "teacher"):
            save_nets(f"student-{taught_by}-{count}", train_students(teacher, every, taught_by))


if __name__ == "__main__":
    main()
