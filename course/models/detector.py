"""The detector, which draws boxes around shapes, the pictures it is tried on, and how good its boxes are."""

import collections

import safetensors.torch
import torch
import transformers

from course.models.loading import DATA, quiet_loading

# What was found in a picture, or is truly there: boxes float32 (n, 4) as left, top, right, bottom in pixels, labels
# int64 (n,), and scores float32 (n,), all 1 for the truth.
Boxes = collections.namedtuple("Boxes", "boxes labels scores")


def load_detector(source=None):
    """A small Conditional DETR that this project trained on drawn shapes.

    Args:
        source: None for the course's own, whose card is data/detector/README.md; a folder or a Hub id of another
            detector of the DETR family, such as "facebook/detr-resnet-50". `detect` is for the course's: another has
            its own way to take pictures and to give scores, which transformers' processor for it knows.

    Returns:
        a model of transformers in float32 and evaluation mode; `model.config.id2label` names the shapes.
    """
    with quiet_loading():
        source = DATA / "detector" if source is None else source
        model = transformers.AutoModelForObjectDetection.from_pretrained(source, dtype=torch.float32)
    return model.eval()


def load_pictures():
    """The 64 pictures that the detector was never trained on, and what is on them.

    Returns:
        (pictures, truth): uint8 tensor of shape (64, 3, 64, 64), and a list of 64 Boxes.
    """
    stored = safetensors.torch.load_file(DATA / "detector" / "pictures.safetensors")
    truth = [
        Boxes(boxes[:count].float(), labels[:count].long(), torch.ones(count))
        for boxes, labels, count in zip(stored["boxes"], stored["labels"], stored["counts"].tolist(), strict=True)
    ]
    return stored["pictures"], truth


def as_input(pictures):
    """uint8 pictures (n, 3, height, width) as the detector takes them: float32 from -1 to 1."""
    return pictures.float() / 127.5 - 1


def detect(model, pictures, threshold=0.0):
    """The boxes that a detector draws.

    Args:
        model: as `load_detector` gives it, one score a shape (a sigmoid each).
        pictures: uint8 tensor of shape (n, 3, height, width).
        threshold: boxes that the detector is less sure of are left out; from 0 to 1.

    Returns:
        a list of n Boxes, the surest box first.
    """
    height, width = pictures.shape[-2:]
    with torch.inference_mode():
        output = model(pixel_values=as_input(pictures))
    scores, labels = output.logits.float().sigmoid().max(-1)
    x, y, w, h = output.pred_boxes.float().unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * torch.tensor([width, height] * 2)
    found = []
    for box, label, score in zip(corners, labels, scores, strict=True):
        order = score.argsort(descending=True, stable=True)
        order = order[score[order] >= threshold]
        found.append(Boxes(box[order], label[order], score[order]))
    return found


def overlap(boxes, others):
    """Intersection over union of each box with each other one: (n, 4) and (m, 4) -> (n, m), from 0 to 1."""
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = lambda b: (b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1)  # noqa: E731 - said twice below, and nowhere else
    return shared / (area(boxes)[:, None] + area(others)[None] - shared).clamp(min=1e-9)


def average_precision(found, truth, least_overlap=0.5):
    """How good a detector's boxes are: AP50, the mean over the shapes of the area under precision against recall.

    Of one shape's boxes over all pictures, the surest first, each takes the true box that it overlaps most and no
    surer one has taken; it is right when they overlap by `least_overlap` or more. The precision at a recall is the best
    that is reached at this recall or a higher one, as the Pascal VOC challenge has counted since 2010.

    Args:
        found, truth: a list of Boxes each, one a picture.
        least_overlap: the intersection over union from which a box is right.

    Returns:
        a float from 0 to 1.
    """
    shapes = sorted({label for boxes in truth for label in boxes.labels.tolist()})
    return sum(_precision_of_shape(shape, found, truth, least_overlap) for shape in shapes) / len(shapes)


def _precision_of_shape(shape, found, truth, least_overlap):
    wanted = [boxes.boxes[boxes.labels == shape] for boxes in truth]
    candidates = [
        (score, picture, box)
        for picture, boxes in enumerate(found)
        for box, label, score in zip(boxes.boxes, boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
        if label == shape
    ]
    taken, hits = [torch.zeros(len(boxes), dtype=torch.bool) for boxes in wanted], []
    for _, picture, box in sorted(candidates, key=lambda candidate: -candidate[0]):
        ious = overlap(box[None], wanted[picture])[0].masked_fill(taken[picture], -1)
        best = int(ious.argmax()) if len(ious) else None
        hits.append(best is not None and ious[best].item() >= least_overlap)
        if hits[-1]:
            taken[picture][best] = True
    right = torch.tensor(hits, dtype=torch.float64).cumsum(0)
    recall = right / sum(len(boxes) for boxes in wanted)
    precision = right / torch.arange(1, len(hits) + 1)
    # Walking from the end, the best precision so far, times how far the recall moves at each step.
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return (envelope * recall.diff(prepend=torch.zeros(1, dtype=torch.float64))).sum().item()
