"""Pictures draw their data and say what they draw: a caption that were wrong would differ from the data."""

import base64
import re

import matplotlib.image
import numpy as np
import pytest
import torch

from qlib import Scheme, quantize_tensor
from qlib.plot import (
    ERRORS,
    LARGEST_GRID,
    VALUES,
    Picture,
    curve,
    heatmaps,
    histogram,
    line_styles,
    new_figure,
    significant,
)

PANELS = ["Original", "Quantized", "Dequantized", "Error"]
T = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0.0, 684.6, 245.5]])


def quantized_picture(tensor, scheme=None):
    scheme = scheme or Scheme(symmetric=False, axis=None)
    qtensor = quantize_tensor(tensor, scheme)
    return heatmaps(tensor, qtensor.values, qtensor.dequantize())


def panels(picture):
    """{title: axis} of the four panels; colour bars have no title."""
    return {axis.get_title(): axis for axis in picture.figure.axes if axis.get_title()}


def drawn(axis):
    """The numbers whose colours a panel shows, as a (rows, columns) array."""
    return np.asarray(axis.collections[0].get_array())


def box(axis):
    """(row, column) of the cell that is boxed."""
    (rectangle,) = axis.patches
    assert (rectangle.get_width(), rectangle.get_height(), rectangle.get_fill()) == (1, 1, False)
    return int(rectangle.get_y()), int(rectangle.get_x())


def assert_draws(picture, path):
    """The picture can be saved, and is no empty page."""
    picture.save(path)
    pixels = matplotlib.image.imread(path)
    height, width = pixels.shape[:2]
    assert height > 100 and width > 500
    assert (pixels[..., :3].min(axis=2) < 0.5).mean() > 0.002, "ink on white paper"


# ---------------------------------------------------------------- heatmaps


def test_the_caption_says_shape_range_error_and_worst_element():
    quantized = torch.tensor([[1, 2], [3, -4]])
    dequantized = torch.tensor([[1.0, 2.0], [3.0, -4.5]])
    picture = heatmaps(torch.tensor([[1.0, 2.0], [3.0, -4.0]]), quantized, dequantized)
    assert picture.caption == (
        "A 2 x 2 matrix from -4 to 3; integers from -4 to 3; mean squared error 0.0625. "
        "Largest error, boxed, at [1, 1]: -4 came back as -4.5."
    )
    assert repr(picture) == picture.caption


@pytest.mark.parametrize("worst", [(0, 0), (1, 2), (2, 1)])
def test_another_worst_element_moves_the_box_and_the_words(worst):
    dequantized = T.clone()
    dequantized[worst] += 50
    picture = heatmaps(T, torch.zeros_like(T), dequantized)
    came_back = f"{significant(T[worst].item())} came back as {significant(dequantized[worst].item())}"
    assert f"Largest error, boxed, at {list(worst)}: {came_back}." in picture.caption
    assert all(box(axis) == worst for axis in panels(picture).values())


def test_the_four_panels_show_the_four_matrices():
    qtensor = quantize_tensor(T, Scheme(4, axis=1))
    came_back = qtensor.dequantize()
    axes = panels(heatmaps(T, qtensor.values, came_back))
    assert list(axes) == PANELS
    for title, matrix in zip(PANELS, (T, qtensor.values, came_back, came_back - T), strict=True):
        np.testing.assert_allclose(drawn(axes[title]), matrix.double(), rtol=1e-6, atol=1e-5)


def test_values_share_one_perceptual_scale_and_errors_have_a_diverging_one_centred_on_zero():
    axes = panels(quantized_picture(T))
    assert axes["Original"].collections[0].get_clim() == axes["Dequantized"].collections[0].get_clim()
    low, high = axes["Error"].collections[0].get_clim()
    assert low == -high == -np.abs(drawn(axes["Error"])).max()
    assert axes["Error"].collections[0].cmap.name == ERRORS
    assert {axes[title].collections[0].cmap.name for title in PANELS[:3]} == {VALUES}


def test_the_panels_share_a_layout():
    picture = quantized_picture(torch.linspace(-1, 1, 70 * 100).reshape(70, 100) ** 3)
    picture.figure.draw_without_rendering()
    axes = panels(picture).values()
    first, second, third, fourth = (axis.get_position() for axis in axes)
    for left, right in ((first, second), (third, fourth)):
        assert (left.y0, left.y1) == pytest.approx((right.y0, right.y1), abs=1e-6)
        assert left.x1 < right.x0
    for upper, lower in ((first, third), (second, fourth)):
        assert upper.width == pytest.approx(lower.width, rel=1e-2)
        assert lower.y1 < upper.y0
    assert len({drawn(axis).shape for axis in axes}) == len({box(axis) for axis in axes}) == 1


def test_a_small_matrix_is_annotated_with_its_numbers():
    axes = panels(quantized_picture(T))
    assert [text.get_text() for text in axes["Original"].texts][:3] == ["191.6", "-13.5", "728.6"]
    assert [text.get_text() for text in axes["Quantized"].texts] == [
        "-23", "-81", "127", "-51", "6", "-128", "-77", "114", "-8",
    ]  # fmt: skip
    assert all(len(axis.texts) == 9 for axis in axes.values())


def test_a_matrix_of_more_than_8_rows_or_columns_is_not_annotated():
    for shape in [(8, 8), (9, 2), (2, 9)]:
        axes = panels(quantized_picture(torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)))
        assert len(axes["Original"].texts) == (64 if shape == (8, 8) else 0)


@pytest.mark.parametrize("shape", [(3, 3), (1, 8), (8, 8)], ids=str)
def test_no_number_is_wider_than_its_cell(shape):
    picture = quantized_picture(torch.linspace(-777.7, -555.5, shape[0] * shape[1]).reshape(shape))
    picture.figure.draw_without_rendering()
    for axis in panels(picture).values():
        cell = axis.get_window_extent().width / shape[1]
        assert len(axis.texts) == shape[0] * shape[1]
        assert max(text.get_window_extent().width for text in axis.texts) <= cell


@pytest.mark.parametrize("shape", [(1, 1000), (40, 2)], ids=str)
def test_a_thin_matrix_is_not_drawn_as_a_thread(shape):
    picture = quantized_picture(torch.linspace(-1, 1, max(shape) * min(shape)).reshape(shape))
    picture.figure.draw_without_rendering()
    for axis in panels(picture).values():
        extent = axis.get_window_extent()
        assert min(extent.width, extent.height) > 0.8 * picture.figure.dpi, "0.8 inches"


@pytest.mark.parametrize("shape", [(LARGEST_GRID, LARGEST_GRID), (LARGEST_GRID + 1, 10), (97, 333), (1, 500)], ids=str)
def test_a_large_matrix_keeps_its_worst_element_and_every_outlier(shape):
    matrix = torch.linspace(-1, 1, shape[0] * shape[1]).reshape(shape)
    outlier, worst = (shape[0] // 3, shape[1] // 4), (shape[0] - 1, shape[1] - 1)
    matrix[outlier] = 40.0
    matrix[worst] = 0.0625  # which its own tile would not show
    quantized, dequantized = torch.zeros(shape), matrix.clone()
    quantized[worst], dequantized[worst] = 7, matrix[worst] - 0.5
    picture = heatmaps(matrix, quantized, dequantized)
    assert f"at {list(worst)}: {significant(matrix[worst].item())} came back as" in picture.caption
    axes = panels(picture)
    assert max(drawn(axes["Original"]).shape) <= LARGEST_GRID
    assert drawn(axes["Original"]).max() == 40.0
    at = box(axes["Error"])
    assert -drawn(axes["Error"])[at] == np.abs(drawn(axes["Error"])).max() == 0.5
    assert drawn(axes["Quantized"])[at] == 7
    assert ("tile" in picture.caption) == (max(shape) > LARGEST_GRID)


def test_each_tile_shows_its_element_of_the_largest_magnitude_the_same_one_in_every_panel():
    matrix = torch.sin(torch.arange(100.0 * 60)).reshape(100, 60)
    quantized = torch.arange(100 * 60).reshape(100, 60)  # so that the number tells which element it is
    picture = heatmaps(matrix, quantized, matrix)
    shown = {title: drawn(axis) for title, axis in panels(picture).items()}
    assert "a tile of 3 x 2" in picture.caption
    assert shown["Original"].shape == (34, 30)
    for (row, column), value in np.ndenumerate(shown["Original"]):
        if (row, column) != box(panels(picture)["Original"]):
            assert abs(value) == matrix[3 * row : 3 * row + 3, 2 * column : 2 * column + 2].abs().max()
    places = shown["Quantized"].astype(int)
    np.testing.assert_array_equal(shown["Original"], matrix.flatten()[places].double())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (T, "A 3 x 3 matrix from -184 to 728.6"),
        (torch.tensor([1.0, -2.0, 3.0]), "A vector of 3 from -2 to 3"),
        (torch.tensor(5.0), "A vector of 1 from 5 to 5"),
        (torch.full((4, 4), 2.5), "A 4 x 4 matrix from 2.5 to 2.5"),
        (torch.zeros(4, 4), "A 4 x 4 matrix from 0 to 0; integers from -128 to -128; mean squared error 0."),
        (torch.linspace(-1, 1, 14).reshape(2, 7), "A 2 x 7 matrix from -1 to 1"),
        (torch.linspace(-1, 1, 14).reshape(14, 1), "A 14 x 1 matrix from -1 to 1"),
        (torch.linspace(-1, 1, 1000), "A vector of 1000 from -1 to 1"),
        (torch.tensor([[1e-30, -1e-30]]), "A vector of 2 from -1e-30 to 1e-30"),
        (torch.linspace(-1, 1, 12).reshape(3, 4).bfloat16(), "A 3 x 4 matrix from -1 to 1"),
        (torch.nn.Parameter(torch.eye(3)), "A 3 x 3 matrix from 0 to 1"),
    ],
    ids=lambda x: str(tuple(x.shape)) if isinstance(x, torch.Tensor) else "",
)
def test_heatmaps_of_many_shapes_are_described(tensor, words):
    assert quantized_picture(tensor).caption.startswith(words)


@pytest.mark.parametrize(
    "tensor",
    [T, T[0], torch.tensor(5.0), torch.zeros(2, 2), torch.eye(2), torch.linspace(-1, 1, 300 * 700).reshape(300, 700)],
    ids=["small", "vector", "number", "constant", "no error", "large"],
)
def test_heatmaps_are_drawn(tensor, tmp_path):
    assert_draws(quantized_picture(tensor), tmp_path / "heatmaps.png")


def test_no_error_at_all_is_drawn_as_the_middle_of_the_diverging_colours():
    axes = panels(heatmaps(torch.eye(3), torch.eye(3), torch.eye(3)))
    assert axes["Error"].collections[0].get_clim() == (-1, 1)
    assert (drawn(axes["Error"]) == 0).all()


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3), (2, 3), (3, 2)], [(2, 3), (6,), (2, 3)], [(2, 2, 2)] * 3, [(0,)] * 3, [(4, 0)] * 3],
    ids=str,
)
def test_what_is_not_three_matrices_of_one_shape_is_refused_by_their_shapes(shapes):
    with pytest.raises(ValueError, match="heatmaps draws three matrices of one shape, not ") as raised:
        heatmaps(*(torch.zeros(shape) for shape in shapes))
    if shapes[0] == (2, 3):
        assert str(shapes[2]) in str(raised.value)


def test_drawing_leaves_the_tensors_as_they_were():
    matrix, kept = T.clone(), T.clone()
    heatmaps(matrix, matrix, matrix)
    assert torch.equal(matrix, kept)


# ---------------------------------------------------------------- histograms and curves


def test_a_histogram_says_count_range_and_spread_of_each_group(tmp_path):
    picture = histogram({"a": torch.tensor([-1.0, 1.0]), "b": torch.full((2, 3), 5.0)}, "Weights", "value")
    assert picture.caption == (
        "Weights. a: 2 values from -1 to 1, standard deviation 1; b: 6 values from 5 to 5, standard deviation 0."
    )
    (axis,) = picture.figure.axes
    assert axis.get_yscale() == "log"
    assert sum(patch.get_height() for patch in axis.patches) == 2 + 6, "every value falls in a bin"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert_draws(picture, tmp_path / "histogram.png")


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30])
def test_a_histogram_of_one_value_repeated_is_drawn(value, tmp_path):
    picture = histogram({"constant": torch.full((50,), value)}, "Constant", "value")
    assert sum(patch.get_height() for patch in picture.figure.axes[0].patches) == 50
    assert_draws(picture, tmp_path / "histogram.png")


def test_a_curve_says_its_points_from_left_to_right(tmp_path):
    picture = curve({"int": [(8, 0.25), (2, 9.5), (4, 1.0)], "float": [(16, 0.0)]}, "Error", "bits", "MSE")
    assert picture.caption == "Error: MSE over bits. int: 9.5 at 2, 1 at 4, 0.25 at 8; float: 0 at 16."
    first, second = picture.figure.axes[0].lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([2, 4, 8], [9.5, 1.0, 0.25])
    assert (list(second.get_xdata()), first.get_color() != second.get_color()) == ([16], True)
    assert_draws(picture, tmp_path / "curve.png")


def test_a_curve_of_many_points_says_its_ends_its_lowest_and_its_highest():
    points = [(x, (x - 3) ** 2) for x in range(12)]
    assert "from 9 at 0 to 64 at 11, lowest 0 at 3, highest 64 at 11." in curve({"": points}, "t", "x", "y").caption


def test_no_two_lines_look_alike_and_a_line_too_many_is_refused():
    curve({f"{n}": [(n, 1.0)] for n in range(16)}, "t", "x", "y")
    assert len({str(style) for style in line_styles(16)}) == 16
    with pytest.raises(ValueError, match="17 lines in one picture: only 16 can be told from each other"):
        curve({f"{n}": [(n, 1.0)] for n in range(17)}, "t", "x", "y")


def test_a_histogram_of_many_groups_draws_them_all():
    picture = histogram({f"{n}": torch.full((n + 1,), float(n)) for n in range(12)}, "Groups", "value")
    assert sum(patch.get_height() for patch in picture.figure.axes[0].patches) == sum(range(1, 13))


def test_a_curve_is_logarithmic_when_asked():
    assert curve({"a": [(1, 1.0), (2, 100.0)]}, "t", "x", "y").figure.axes[0].get_yscale() == "linear"
    assert curve({"a": [(1, 1.0), (2, 100.0)]}, "t", "x", "y", logy=True).figure.axes[0].get_yscale() == "log"


# ---------------------------------------------------------------- on the page


@pytest.mark.parametrize(
    ("number", "text"), [(0.0, "0"), (-0.0, "0"), (728.6, "728.6"), (1 / 3, "0.3333"), (1e-9, "1e-09")]
)
def test_significant_digits(number, text):
    assert significant(number) == text


def test_a_picture_is_shown_with_its_caption_as_text_and_under_it(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    picture = quantized_picture(T)
    picture._ipython_display_()
    image, words = shown
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert image["text/plain"] == words["text/plain"] == picture.caption
    assert words["text/markdown"] == f"*{picture.caption}*"


def test_the_same_picture_has_the_same_bytes_and_names_no_version(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data.get("image/png")))
    for _ in range(2):
        quantized_picture(T)._ipython_display_()
    assert shown[0] == shown[2]
    assert b"Matplotlib" not in base64.b64decode(shown[0])


def test_a_picture_may_be_saved_as_svg(tmp_path):
    quantized_picture(T).save(tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_a_figure_belongs_to_no_window_and_leaves_the_learners_settings_alone():
    import matplotlib.pyplot

    before = dict(matplotlib.rcParams)
    figure, axes = new_figure(4, 2, columns=2)
    assert matplotlib.pyplot.get_fignums() == []
    assert len(axes) == 2 and not axes[0].spines["top"].get_visible()
    assert dict(matplotlib.rcParams) == before
    assert repr(Picture(figure, "words")) == "words"


def test_captions_show_no_more_digits_than_every_computer_agrees_on():
    numbers = re.findall(r"\d+\.\d+", quantized_picture(torch.linspace(-1 / 3, 2 / 3, 60).reshape(6, 10)).caption)
    assert numbers and all(len(number.replace(".", "").lstrip("0")) <= 4 for number in numbers)
