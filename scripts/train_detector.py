"""Trains the detector of lesson 12 on drawn shapes and writes it, and the pictures it is tried on, to data/detector.

    python scripts/train_detector.py

A Conditional DETR (arXiv:2108.06152) as transformers has it, shrunk: two stages of a basic ResNet make 8 x 8 cells of a
picture of 64 x 64 pixels. The ResNet first learns alone to say which shape covers each cell; without that, the queries
wait for thousands of steps until the picture tells them anything. Every picture it is trained on is drawn anew. Takes
about 15 minutes on one core.
"""

import math

import numpy as np
import safetensors.torch
import torch
import tqdm
import transformers
from PIL import Image, ImageDraw

from course.models import DATA, Boxes, average_precision, detect
from course.models.detector import as_input

OUT = DATA / "detector"
SHAPES = ("circle", "square", "triangle", "star")
SIZE, FINER, CELL = 64, 4, 8  # pixels: a side; how much larger a picture is drawn; a side of a cell
FIRST_STEPS, FIRST_RATE = 800, 2e-3  # of the ResNet alone
STEPS, RATE, WARM_UP = 6000, 8e-4, 100  # of the whole
BATCH = 32
TEST_PICTURES, TEST_SEED = 64, 2**31


def outline(shape, x, y, radius, turn):
    """The corners of a shape, in pixels: a list of (x, y)."""
    corners, dents = {"circle": (48, None), "square": (4, None), "triangle": (3, None), "star": (5, 0.42)}[shape]
    points = []
    for i in range(corners):
        steps = [(i, 1)] if dents is None else [(i, 1), (i + 0.5, dents)]
        for step, reach in steps:
            angle = turn + 2 * math.pi * step / corners
            points.append((x + reach * radius * math.sin(angle), y - reach * radius * math.cos(angle)))
    return points


def draw_picture(rng):
    """A picture with one to four shapes on a noisy ground, and what is on it.

    Returns:
        (picture, boxes, labels): uint8 (3, 64, 64), a list of (left, top, right, bottom) in pixels, and a list of
        numbers in SHAPES.
    """
    ground = rng.integers(30, 226, 3)
    image = Image.new("RGB", (SIZE * FINER, SIZE * FINER), tuple(int(c) for c in ground))
    canvas, boxes, labels = ImageDraw.Draw(image), [], []
    wanted = rng.integers(1, 5)
    for _ in range(40):
        if len(boxes) == wanted:
            break
        label, radius = int(rng.integers(len(SHAPES))), rng.uniform(6, 14)
        x, y = rng.uniform(radius, SIZE - radius, 2)
        points = outline(SHAPES[label], x, y, radius, rng.uniform(0, 2 * math.pi))
        xs, ys = zip(*points, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
        colour = rng.integers(0, 256, 3)
        apart = all(box[2] < b[0] + 2 or box[0] > b[2] - 2 or box[3] < b[1] + 2 or box[1] > b[3] - 2 for b in boxes)
        if not apart or np.abs(colour - ground).max() < 60:
            continue
        canvas.polygon([(px * FINER, py * FINER) for px, py in points], fill=tuple(int(c) for c in colour))
        boxes.append(box)
        labels.append(label)
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels + rng.normal(0, 6, pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8).transpose(2, 0, 1), boxes, labels


def new_model():
    """A Conditional DETR of about 0.4 million parameters, all of which learn."""
    backbone = transformers.ResNetConfig(
        embedding_size=24, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.ConditionalDetrConfig(
        backbone_config=backbone,
        num_queries=12,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        dropout=0.0,
        auxiliary_loss=True,
        id2label=dict(enumerate(SHAPES)),
        label2id={shape: number for number, shape in enumerate(SHAPES)},
    )
    model = transformers.ConditionalDetrForObjectDetection(config)
    return model.requires_grad_(True)


def settle_norms(model, pictures):
    """Give each frozen batch norm the mean and variance of what reaches it, in one pass: it will never learn them."""

    def settle(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    norms = [module for module in model.modules() if "BatchNorm" in type(module).__name__]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    with torch.no_grad():
        model(pixel_values=as_input(pictures))
    for hook in hooks:
        hook.remove()


def draw_batch(rng, count):
    """Pictures as one uint8 tensor (count, 3, 64, 64), and a list of Boxes."""
    drawn = [draw_picture(rng) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([picture for picture, _, _ in drawn])).contiguous()
    truth = [
        Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels), torch.ones(len(labels)))
        for _, boxes, labels in drawn
    ]
    return pictures, truth


def as_labels(truth):
    """Boxes as transformers' loss wants them: centre and size, as parts of the picture's side."""
    labels = []
    for boxes in truth:
        low, high = boxes.boxes[:, :2] / SIZE, boxes.boxes[:, 2:] / SIZE
        labels.append({"class_labels": boxes.labels, "boxes": torch.cat([(low + high) / 2, high - low], 1)})
    return labels


def as_cells(truth):
    """Which shape's box covers the middle of each cell: int64 (n, 8, 8), 0 for none, else 1 + its number in SHAPES."""
    middles = (torch.arange(SIZE // CELL) + 0.5) * CELL
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    cells = torch.zeros(len(truth), *x.shape, dtype=torch.long)
    for picture, found in zip(cells, truth, strict=True):
        for (left, top, right, bottom), label in zip(found.boxes, found.labels, strict=True):
            picture[(x > left) & (x < right) & (y > top) & (y < bottom)] = label + 1
    return cells


def train_backbone(model):
    """Teach the ResNet alone to say which shape covers each cell."""
    backbone, head = model.model.backbone, torch.nn.Conv2d(64, len(SHAPES) + 1, 1)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=FIRST_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, FIRST_STEPS)
    for step in tqdm.trange(FIRST_STEPS, mininterval=10):
        pictures, truth = draw_batch(np.random.default_rng(TEST_SEED + 2 + step), BATCH)
        features, _ = backbone(as_input(pictures), torch.ones(BATCH, SIZE, SIZE))[-1]
        loss = torch.nn.functional.cross_entropy(head(features), as_cells(truth))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def rate_at(step):
    """What the learning rate is times: up in a line, then down a cosine to a hundredth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2


def train():
    """The trained model."""
    torch.manual_seed(0)
    model = new_model()
    settle_norms(model, draw_batch(np.random.default_rng(STEPS), 256)[0])
    train_backbone(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at)
    for step in tqdm.trange(STEPS, mininterval=10):
        pictures, truth = draw_batch(np.random.default_rng(step), BATCH)
        loss = model(pixel_values=as_input(pictures), labels=as_labels(truth)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            pictures, truth = draw_batch(np.random.default_rng(TEST_SEED + 1), 128)
            precision = average_precision(detect(model.eval(), pictures), truth)
            print(f"\nstep {step + 1}: loss {loss.item():.2f}, AP50 {precision:.3f} on 128 other pictures")
            model.train()
    return model.eval()


def write(model):
    """Write the checkpoint in float32 and the test pictures, and say how well the model does on them."""
    model.config.auxiliary_loss = False
    model.save_pretrained(OUT)
    pictures, truth = draw_batch(np.random.default_rng(TEST_SEED), TEST_PICTURES)
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # noqa: E731
    stored = {
        "pictures": pictures,
        "boxes": pad([boxes.boxes for boxes in truth]),
        "labels": pad([boxes.labels for boxes in truth]).to(torch.uint8),
        "counts": torch.tensor([len(boxes.labels) for boxes in truth], dtype=torch.uint8),
    }
    safetensors.torch.save_file(stored, OUT / "pictures.safetensors", metadata={"format": "pt"})
    print(f"AP50 {average_precision(detect(model, pictures), truth):.3f} on the {TEST_PICTURES} test pictures")


def main():
    torch.set_num_threads(1)
    write(train())


if __name__ == "__main__":
    main()
