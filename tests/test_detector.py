"""The detector: overlaps and average precision against worked examples, and the checkpoint against its card."""

import re
import types

import pytest
import torch

from course.models import DATA, Boxes, average_precision, detect, load_detector, load_pictures
from course.models.detector import as_input, overlap


def boxes(*found):
    """Boxes of (box, label, score), or of (box, label) for the truth."""
    corners = torch.tensor([one[0] for one in found], dtype=torch.float32).view(-1, 4)
    labels = torch.tensor([one[1] for one in found], dtype=torch.int64)
    scores = torch.tensor([one[2] if len(one) == 3 else 1.0 for one in found])
    return Boxes(corners, labels, scores)


HERE, THERE, ELSEWHERE, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30), (50, 50, 60, 60)


@pytest.fixture(scope="module")
def shipped():
    return load_detector(), *load_pictures()


# ---------------------------------------------------------------- overlap


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 10), 1),
        ((0, 0, 10, 5), 1 / 2),
        ((5, 0, 15, 10), 50 / 150),
        ((5, 5, 15, 15), 25 / 175),
        ((2, 2, 4, 4), 4 / 100),
        ((10, 0, 20, 10), 0),
        ((20, 20, 30, 30), 0),
        ((5, 5, 5, 5), 0),
    ],
    ids=["itself", "its half", "shifted", "over the corner", "inside", "beside it", "apart", "a point"],
)
def test_intersection_over_union_of_a_square_of_10(other, expected):
    a, b = torch.tensor([HERE], dtype=torch.float32), torch.tensor([other], dtype=torch.float32)
    assert overlap(a, b).item() == overlap(b, a).item() == pytest.approx(expected)


def test_each_box_meets_each_other_one():
    a = torch.tensor([HERE, THERE, FAR], dtype=torch.float32)
    assert torch.equal(overlap(a, a), torch.eye(3))
    assert overlap(a[:2], a).shape == (2, 3)
    assert overlap(a[:0], a).shape == (0, 3) and overlap(a, a[:0]).shape == (3, 0)


# ---------------------------------------------------------------- average precision


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(HERE, 0, 0.9), (THERE, 0, 0.8), (ELSEWHERE, 0, 0.7)], 1),
        ([], 0),
        ([(HERE, 0, 0.9)], 1 / 3),
        # Right, wrong, right: the precision is 1, 1/2, 2/3, and one of the three is never found.
        ([(HERE, 0, 0.9), (FAR, 0, 0.8), (THERE, 0, 0.7)], 1 / 3 + 2 / 3 / 3),
        # Wrong, then three right: 3/4 is reached at the end, so it counts at every recall.
        ([(FAR, 0, 0.9), (HERE, 0, 0.8), (THERE, 0, 0.7), (ELSEWHERE, 0, 0.6)], 3 / 4),
        # A true box is taken once; the second box on it is wrong.
        ([(HERE, 0, 0.9), (HERE, 0, 0.8), (THERE, 0, 0.7), (ELSEWHERE, 0, 0.6)], 1 / 3 + 2 / 3 * 3 / 4),
        ([(HERE, 1, 0.9), (THERE, 1, 0.8), (ELSEWHERE, 1, 0.7)], 0),
        ([(HERE, 0, 0.9), (THERE, 0, 0.8), (ELSEWHERE, 0, 0.7), (FAR, 0, 0.1), (FAR, 1, 0.99)], 1),
    ],
    ids=["all", "none", "one", "one wrong between", "one wrong first", "twice", "another label", "wrong ones last"],
)
def test_average_precision_of_three_things_on_one_picture(found, expected):
    truth = [boxes((HERE, 0), (THERE, 0), (ELSEWHERE, 0))]
    assert average_precision([boxes(*found)], truth) == pytest.approx(expected)


def test_shapes_weigh_the_same_however_many_there_are():
    truth = [boxes((HERE, 0), (THERE, 0), (ELSEWHERE, 0), (FAR, 7))]
    assert average_precision([boxes((FAR, 7, 0.2))], truth) == pytest.approx(1 / 2)
    assert average_precision([boxes((HERE, 0, 0.2))], truth) == pytest.approx(1 / 6)


def test_boxes_of_all_pictures_are_ranked_together_and_match_on_their_own_alone():
    truth = [boxes((HERE, 0)), boxes((THERE, 0))]
    swapped = [boxes((THERE, 0, 0.9)), boxes((HERE, 0, 0.8))]
    assert average_precision(swapped, truth) == 0
    # The surest box of all is the wrong one on the second picture.
    found = [boxes((HERE, 0, 0.5)), boxes((FAR, 0, 0.9), (THERE, 0, 0.4))]
    assert average_precision(found, truth) == pytest.approx(2 / 3)
    assert average_precision(found[::-1], truth[::-1]) == pytest.approx(2 / 3)


def test_half_of_the_union_is_enough_and_less_is_not():
    truth = [boxes((HERE, 0))]
    half, less = boxes(((0, 0, 10, 5), 0, 0.9)), boxes(((0, 0, 10, 4.9), 0, 0.9))
    assert (average_precision([half], truth), average_precision([less], truth)) == (1, 0)
    assert average_precision([less], truth, least_overlap=0.45) == 1


# ---------------------------------------------------------------- detect


def test_pictures_go_in_from_minus_1_to_1():
    pictures = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.allclose(as_input(pictures).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_boxes_come_as_corners_in_pixels_the_surest_first_and_none_below_the_threshold():
    def model(pixel_values):
        logits = torch.tensor([[[-2.0, -1.0], [3.0, 0.0], [-9.0, -8.0]]])
        centres = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2], [0.1, 0.1, 0.1, 0.1]]])
        return types.SimpleNamespace(logits=logits, pred_boxes=centres)

    (found,) = detect(model, torch.zeros(1, 3, 50, 200, dtype=torch.uint8), threshold=0.2)
    assert found.labels.tolist() == [0, 1]
    assert torch.allclose(found.scores, torch.tensor([3.0, -1.0]).sigmoid())
    assert torch.allclose(found.boxes, torch.tensor([[0.0, 20, 100, 30], [0, 0, 200, 50]]))
    (everything,) = detect(model, torch.zeros(1, 3, 50, 200, dtype=torch.uint8))
    assert len(everything.labels) == 3


def test_a_picture_gets_the_same_boxes_alone_and_among_others(shipped):
    detector, pictures, _ = shipped
    together = detect(detector, pictures[:5], threshold=0.5)
    for number in range(5):
        (alone,) = detect(detector, pictures[number : number + 1], threshold=0.5)
        assert torch.equal(alone.labels, together[number].labels)
        assert torch.allclose(alone.boxes, together[number].boxes, atol=1e-2)


# ---------------------------------------------------------------- the checkpoint, the pictures and the card


def test_the_card_tells_the_truth_about_size_and_precision(shipped):
    detector, pictures, truth = shipped
    card = (DATA / "detector" / "README.md").read_text(encoding="utf-8")
    assert f"{sum(parameter.numel() for parameter in detector.parameters()):,} parameters" in card
    stated = float(re.search(r"AP50 (\d\.\d+)", card)[1])
    assert average_precision(detect(detector, pictures), truth) == pytest.approx(stated, abs=0.003)


def test_every_picture_has_one_to_four_shapes_inside_it(shipped):
    detector, pictures, truth = shipped
    assert pictures.shape == (64, 3, 64, 64) and pictures.dtype == torch.uint8 and len(truth) == 64
    assert set(detector.config.id2label.values()) == {"circle", "square", "triangle", "star"}
    for one in truth:
        assert 1 <= len(one.labels) == len(one.boxes) == len(one.scores) <= 4
        assert set(one.labels.tolist()) <= set(detector.config.id2label)
        assert (one.boxes >= 0).all() and (one.boxes <= 64).all()
        assert (one.boxes[:, 2:] - one.boxes[:, :2] > 6).all()


def test_loading_says_nothing_and_leaves_nothing_on_meta(capfd):
    detector = load_detector()
    assert capfd.readouterr() == ("", "")
    assert not detector.training
    assert not any(tensor.is_meta for tensor in [*detector.parameters(), *detector.buffers()])
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
