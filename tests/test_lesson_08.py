"""Lesson 8: every figure and every claim of its prose, on the matrices that it uses."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import course.helper as helper
from course.figures import lesson_08 as figures
from course.models import embed, load_encoder, load_sentences
from qlib import Scheme, choose_qparams, dequantize, fake_quantize, quantize, quantize_tensor
from qlib.affine import expand_groups, split_groups
from qlib.report import bits_per_weight, cosine, frontier, quantization_error, sqnr

M = torch.tensor(
    [[0.3, -0.7, 0.2, 6.3, -2.6, 1.2], [1.4, 0.6, -0.85, -2.1, 0.8, 1.6], [0.35, -0.12, 0.21, 5.1, -14, 3.3]]
)
N = torch.tensor(
    [[0.3, -0.7, 0.2, 6.3, -2.6, 1.2, 1.4, 0.6, 5.2, 6.1], [1.4, 0.6, -0.85, -2.1, 0.8, 1.6, -3.1, 2.2, -0.4, -0.3]]
)
GRANULARITIES = {"per tensor": {"axis": None}, "per row": {"axis": 0}, "per column": {"axis": 1}} | {
    f"groups of {g}": {"group_size": g} for g in (128, 64, 32, 16)
}
WIDTHS = (2, 3, 4, 5, 6, 8)
CHAIN = ["per row", "groups of 128", "groups of 64", "groups of 32", "groups of 16"]


@pytest.fixture(scope="module")
def encoder():
    torch.set_num_threads(1)
    return load_encoder()


@pytest.fixture(scope="module")
def outlier_matrix(encoder):
    return encoder[0].encoder.layer[0].output.dense.weight.detach()


@pytest.fixture(scope="module")
def query(encoder):
    return encoder[0].encoder.layer[0].attention.self.query.weight.detach()


@pytest.fixture(scope="module")
def points(outlier_matrix):
    """{(symmetric, granularity, bits): (bits a weight, SQNR in dB)}"""
    found = {}
    for symmetric, (name, how), bits in itertools.product((True, False), GRANULARITIES.items(), WIDTHS):
        scheme = Scheme(bits, symmetric, **how)
        price = bits_per_weight(outlier_matrix.shape, scheme)
        found[symmetric, name, bits] = price, sqnr(outlier_matrix, fake_quantize(outlier_matrix, scheme))
    return found


# ---------------------------------------------------------------- groups


def test_the_worked_example():
    assert split_groups(M, 3).shape == (3, 2, 3)
    scale, _ = choose_qparams(M, Scheme(bits=4, group_size=3))
    assert scale.flatten().tolist() == pytest.approx([0.1, 0.9, 0.2, 0.3, 0.05, 2.0])
    errors, zeros = [], []
    for scheme in (Scheme(bits=4, axis=None), Scheme(bits=4), Scheme(bits=4, group_size=3)):
        back = fake_quantize(M, scheme)
        errors.append(round(quantization_error(M, back), 4))
        zeros.append((back == 0).sum().item())
    assert errors == [0.3024, 0.0991, 0.0791]
    assert zeros == [9, 5, 0]


def test_a_group_of_the_first_dimension_is_a_run_of_neighbours():
    assert torch.equal(split_groups(M, 3)[2, 1], M[2, 3:6])


@given(st.integers(1, 12), st.integers(1, 16))
def test_split_groups_holds_the_matrix_and_zeros_and_no_more_than_a_group_of_them(columns, group_size):
    tensor = torch.arange(1.0, 2 * columns + 1).reshape(2, columns)
    groups = split_groups(tensor, group_size)
    flat = groups.flatten(1)
    assert groups.shape == (2, -(-columns // group_size), group_size)
    assert torch.equal(flat[:, :columns], tensor)
    assert not flat[:, columns:].any() and flat.shape[1] - columns < group_size


@given(st.integers(2, 8))
def test_the_zeros_that_fill_a_group_change_no_asymmetric_scale(bits):
    scales, zero_points = choose_qparams(N, Scheme(bits, symmetric=False, group_size=4))
    for row in range(2):
        scale, zero_point = choose_qparams(N[row, 8:], Scheme(bits, symmetric=False, axis=None))
        assert (scales[row, 2], zero_points[row, 2]) == (scale, zero_point)
    assert scales[0, 2].item() == pytest.approx(0.4067, abs=5e-5) or bits != 4


def test_groups_of_unknown_size_are_equal_or_refused():
    scales, _ = choose_qparams(N, Scheme(bits=4, group_size=4))
    with pytest.raises(ValueError, match="10 columns do not make 3 equal groups: give the group size"):
        expand_groups(scales, N)
    with pytest.raises(ValueError, match="10 columns in groups of 5 need 2 scales a row, not 3"):
        expand_groups(scales, N, 5)
    halves, _ = choose_qparams(N, Scheme(bits=4, group_size=5))
    assert torch.equal(expand_groups(halves, N), expand_groups(halves, N, 5))


@pytest.mark.parametrize(("which", "groups", "last"), [("query", 4, 84), ("outlier_matrix", 16, 36)])
def test_real_widths_in_groups_of_100(which, groups, last, request):
    weight = request.getfixturevalue(which)
    qtensor = quantize_tensor(weight, Scheme(bits=4, group_size=100))
    assert qtensor.scale.shape == (384, groups)
    assert weight.shape[1] - 100 * (groups - 1) == last
    assert round(qtensor.bits_per_weight, 3) == 4.333


# ---------------------------------------------------------------- the course's names


def test_the_courses_cells_run_on_its_kind_of_matrix():
    matrix = torch.sin(torch.arange(36.0)).reshape(6, 6) * torch.linspace(0.1, 3, 6)
    quantized, scale = helper.linear_q_symmetric_per_group(matrix, group_size=3)
    dequantized = helper.linear_dequantization_per_group(quantized, scale, 3)
    assert quantized.dtype == torch.int8 and quantized.shape == (6, 6)
    assert scale.shape == (12, 1)
    ours = Scheme(bits=8, group_size=3)
    assert torch.equal(scale.reshape(6, 2), choose_qparams(matrix, ours)[0])
    assert torch.equal(dequantized, fake_quantize(matrix, ours))
    # What the course does by hand: a view of groups, a scale a row of it.
    view = matrix.view(-1, 3)
    by_hand = view.abs().amax(1, keepdim=True) / 127
    assert torch.equal(scale, by_hand)
    assert torch.equal(dequantized, (torch.round(view / by_hand) * by_hand).view(6, 6))


def test_the_courses_names_take_a_ragged_last_group_too():
    quantized, scale = helper.linear_q_symmetric_per_group(N, 4, torch.int8)
    assert scale.shape == (6, 1)
    back = helper.linear_dequantization_per_group(quantized, scale, 4)
    assert torch.equal(back, fake_quantize(N, Scheme(bits=8, group_size=4)))


def test_the_courses_per_group_function_refuses_other_dtypes():
    with pytest.raises(ValueError, match=r"the course quantizes to torch\.int8"):
        helper.linear_q_symmetric_per_group(M, 3, dtype=torch.int16)


# ---------------------------------------------------------------- what a scale costs


def test_4_bits_in_groups_of_32_are_5_bits_with_float32_scales(outlier_matrix):
    qtensor = quantize_tensor(outlier_matrix, Scheme(bits=4, group_size=32))
    assert (outlier_matrix.numel(), qtensor.scale.numel(), qtensor.nbytes) == (589824, 18432, 368640)
    assert qtensor.bits_per_weight == 5
    half = {"packed": qtensor.packed, "scale": qtensor.scale.half()}
    assert 8 * sum(part.nbytes for part in half.values()) / outlier_matrix.numel() == 4.5


def test_float16_scales_hardly_change_the_error(outlier_matrix):
    qtensor = quantize_tensor(outlier_matrix, Scheme(bits=4, group_size=32))
    half = expand_groups(qtensor.scale.half().float(), outlier_matrix, 32)
    back = dequantize(quantize(outlier_matrix, half, 0, bits=4), half, 0)
    assert sqnr(outlier_matrix, back) == pytest.approx(sqnr(outlier_matrix, qtensor.dequantize()), abs=0.005)


def test_a_float16_scale_underflows_where_a_float32_scale_does_not():
    faint = torch.tensor([[1e-7, -0.6e-7, 0.0, 0.25e-7]])
    scale, _ = choose_qparams(faint, Scheme(bits=4, group_size=4))
    assert scale.item() == pytest.approx(1.429e-8, rel=1e-3)
    assert scale.half().item() == 0
    assert torch.tensor(2.9e-8).half().item() == 0 and torch.tensor(3.1e-8).half().item() > 0
    back = fake_quantize(faint, Scheme(bits=4, group_size=4))
    assert back.isfinite().all() and (back - faint).abs().max() <= 0.5001 * scale


# ---------------------------------------------------------------- one outlier


def test_what_the_outlier_wipes_out(outlier_matrix):
    assert divmod(outlier_matrix.abs().argmax().item(), 1536) == (99, 856)
    found = []
    for how in [{"axis": None}, {}, *({"group_size": g} for g in (128, 64, 32, 16))]:
        scheme = Scheme(bits=4, **how)
        scale, _ = choose_qparams(outlier_matrix, scheme)
        shared = expand_groups(scale, outlier_matrix, scheme.group_size).expand(384, 1536) == scale.max()
        back = fake_quantize(outlier_matrix, scheme)
        found.append((shared.sum().item(), (back[shared] == 0).sum().item(), round(sqnr(outlier_matrix, back), 1)))
    assert found == [
        (589824, 589824 - 8, 0.2),
        (1536, 1535, 14.0),
        (128, 127, 17.5),
        (64, 63, 18.5),
        (32, 31, 19.7),
        (16, 15, 21.1),
    ]


def test_the_outliers_neighbours_in_the_picture_are_0(outlier_matrix):
    back = fake_quantize(outlier_matrix, Scheme(4, symmetric=False, group_size=32))
    assert back[99, 832:864].nonzero().tolist() == [[856 - 832]]
    assert back[99, 864:896].count_nonzero() > 20


def test_most_of_the_gain_of_groups_is_in_the_other_rows(outlier_matrix):
    per_row, in_groups = (
        (fake_quantize(outlier_matrix, scheme) - outlier_matrix).double().square().sum(1)
        for scheme in (Scheme(bits=4), Scheme(bits=4, group_size=128))
    )
    saved = per_row - in_groups
    assert saved[99] / saved.sum() < 0.1


def test_at_2_bits_per_tensor_only_the_outlier_is_left_and_makes_0_23_decibels(outlier_matrix):
    for symmetric in (True, False):
        back = fake_quantize(outlier_matrix, Scheme(2, symmetric, axis=None))
        assert back.nonzero().tolist() == [[99, 856]]
        assert round(sqnr(outlier_matrix, back), 2) == 0.23


def test_the_question_at_the_sliders_has_an_answer_below_5_1_bits(points):
    price, decibels = points[False, "per row", 5]
    assert (round(price, 2), round(decibels, 2)) == (5.03, 21.57)


@pytest.mark.parametrize(
    ("scheme", "down", "across"),
    [
        (Scheme(axis=None), [], []),
        (Scheme(), list(range(1, 16)), []),
        (Scheme(axis=1), [], list(range(1, 64))),
        (Scheme(group_size=32), list(range(1, 16)), [32]),
        (Scheme(group_size=60), list(range(1, 16)), [8]),
    ],
    ids=str,
)
def test_the_lines_are_where_the_scales_change(scheme, down, across):
    assert figures.block_edges((384, 1536), scheme, slice(92, 108), slice(832, 896)) == (down, across)


# ---------------------------------------------------------------- the price list


def test_the_table_of_the_price_list(points):
    expected = {
        "per tensor": [0.23, 0.24, 0.26, 0.43, 2.29, 13.42],
        "per row": [2.98, 9.31, 15.68, 21.57, 26.75, 37.03],
        "per column": [4.58, 11.42, 17.94, 24.17, 30.32, 41.56],
        "groups of 128": [5.57, 12.66, 19.23, 25.44, 31.36, 42.94],
        "groups of 64": [6.57, 13.76, 20.36, 26.61, 32.62, 44.34],
        "groups of 32": [7.75, 15.03, 21.62, 27.90, 33.98, 45.81],
        "groups of 16": [9.21, 16.53, 23.12, 29.42, 35.52, 47.39],
    }
    for name, decibels in expected.items():
        assert [round(points[False, name, bits][1], 2) for bits in WIDTHS] == decibels


def test_the_calculated_price_is_that_of_the_bytes_that_are_kept(outlier_matrix):
    for symmetric, how, bits in itertools.product((True, False), GRANULARITIES.values(), (2, 3, 8)):
        scheme = Scheme(bits, symmetric, **how)
        kept = quantize_tensor(outlier_matrix, scheme).bits_per_weight
        assert kept == pytest.approx(bits_per_weight(outlier_matrix.shape, scheme), rel=1e-12)


def test_finer_blocks_never_lose_and_per_tensor_is_lowest(points):
    for symmetric, bits in itertools.product((True, False), WIDTHS):
        errors = [points[symmetric, name, bits][1] for name in ["per tensor", *CHAIN]]
        assert errors == sorted(errors)


def at_price(line, price):
    """The SQNR of a line of points at a price between two of them."""
    for (x0, y0), (x1, y1) in itertools.pairwise(sorted(line)):
        if x0 <= price <= x1:
            return y0 + (y1 - y0) * (price - x0) / (x1 - x0)
    return None


def test_the_lines_of_the_finest_groups_lie_below(points):
    finest, coarser = ("groups of 32", "groups of 16"), ("groups of 128", "groups of 64")
    for fine, coarse, symmetric in itertools.product(finest, coarser, (True, False)):
        other = [points[symmetric, coarse, bits] for bits in WIDTHS]
        shared = [(p, q) for p, q in (points[symmetric, fine, b] for b in WIDTHS) if at_price(other, p) is not None]
        assert len(shared) >= 3
        assert all(quality < at_price(other, price) for price, quality in shared)


def test_three_of_four_points_that_are_not_beaten_are_asymmetric(points):
    best = frontier(points)
    assert (sum(not symmetric for symmetric, _, _ in best), len(best)) == (27, 36)
    assert all((False, "per column", bits) in best for bits in WIDTHS)
    assert (False, "groups of 16", 4) not in best and (True, "groups of 16", 4) not in best


def test_the_frontier_is_what_no_other_point_beats(points):
    best = set(frontier(points))
    for name, (price, quality) in points.items():
        beaten = any(p <= price and q >= quality and (p, q) != (price, quality) for p, q in points.values())
        assert (name in best) == (not beaten)


def test_from_a_scale_a_row_on_a_zero_point_gains_something_at_every_width(points):
    for name, bits in itertools.product(GRANULARITIES.keys() - {"per tensor"}, WIDTHS):
        assert points[False, name, bits][1] > points[True, name, bits][1]


def test_only_groups_of_128_beat_the_price_of_a_bit(points):
    a_bit = points[False, "groups of 128", 5][1] - points[False, "groups of 128", 4][1]
    assert round(a_bit, 1) == 6.2
    rates, with_half_scales = [], []
    for coarse, fine in itertools.pairwise(CHAIN):
        (p0, q0), (p1, q1) = points[False, coarse, 4], points[False, fine, 4]
        rates.append(round((q1 - q0) / (p1 - p0), 1))
        with_half_scales.append(round((q1 - q0) / ((p1 - p0) * 24 / 40), 1))
    assert rates == [12.4, 3.6, 2.0, 1.2]
    assert with_half_scales == [20.6, 6.0, 3.4, 2.0]


def test_a_wider_integer_in_groups_of_128_beats_finer_groups_at_every_width(points):
    for bits, wider in itertools.pairwise((2, 3, 4, 5, 6)):
        (price, quality), (fine_price, fine_quality) = (
            points[False, "groups of 128", wider],
            points[False, "groups of 16", bits],
        )
        assert price < fine_price and quality > fine_quality
    assert points[False, "groups of 128", 6][1] - points[False, "groups of 16", 4][1] > 8
    assert points[False, "groups of 16", 4][0] == 6.5 and points[False, "groups of 128", 6][0] < 6.5


def test_what_a_zero_point_gains_against_its_price(outlier_matrix, query):
    def gain(weight, bits, group_size):
        asymmetric, symmetric = (
            fake_quantize(weight, Scheme(bits, mode, group_size=group_size)) for mode in (False, True)
        )
        return sqnr(weight, asymmetric) - sqnr(weight, symmetric)

    price = {64: 6.02 * 8 / 64, 32: 6.02 * 8 / 32}
    for weight in (outlier_matrix, query):
        assert gain(weight, 2, 64) > 4 * price[64] and gain(weight, 2, 32) > 2.5 * price[32]
    assert price[64] < gain(query, 8, 64) < price[64] + 0.25
    assert gain(query, 8, 32) < price[32]
    assert all(gain(outlier_matrix, bits, g) > price[g] for bits in (2, 4, 8) for g in (64, 32))
    assert gain(outlier_matrix, 8, 64) > gain(query, 8, 64)
    # The quiz: at 4 bits in groups of 32 the zero point is worth nearly 2 dB.
    assert 1.85 < gain(outlier_matrix, 4, 32) < 2


def test_at_2_bits_symmetric_mode_uses_three_of_four_integers(query):
    values = quantize_tensor(query, Scheme(2, symmetric=True, group_size=64)).values
    assert values.unique().tolist() == [-1, 0, 1]


# ---------------------------------------------------------------- the encoder


@pytest.fixture(scope="module")
def cosines(encoder):
    """What is left of the embeddings with every matrix of the layers quantized: f(scheme) -> cosine."""
    model, tokenizer = encoder
    sentences = load_sentences()[:48]
    weights = {name: p.detach().clone() for name, p in model.encoder.named_parameters() if p.ndim == 2}
    assert len(weights) == 36 and sum(w.numel() for w in weights.values()) == 10616832
    reference = embed(model, tokenizer, sentences)
    parameters = dict(model.encoder.named_parameters())

    def measure(scheme):
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(fake_quantize(weight, scheme))
        return cosine(reference, embed(model, tokenizer, sentences))

    yield measure
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Scheme(8, False, axis=None), 0.990),
        (Scheme(8, False), 1.000),
        (Scheme(2, False), 0.145),
        (Scheme(2, False, group_size=32), 0.565),
        (Scheme(3, False), 0.765),
        (Scheme(4, False, group_size=32), 0.977),
        (Scheme(5, False), 0.984),
        (Scheme(8, True, group_size=64), 1.000),
        (Scheme(2, True, group_size=64), 0.112),
        (Scheme(2, False, group_size=64), 0.459),
    ],
    ids=str,
)
def test_the_cosines_in_the_prose(cosines, scheme, expected):
    assert cosines(scheme) == pytest.approx(expected, abs=0.0015)


def test_in_the_encoder_too_a_bit_beats_groups_of_32_at_their_price():
    shapes = [(384, 384), (1536, 384), (384, 1536)]
    for bits in (2, 4):
        fine, wider = Scheme(bits, False, group_size=32), Scheme(bits + 1, False)
        assert all(bits_per_weight(shape, wider) < bits_per_weight(shape, fine) for shape in shapes)


# ---------------------------------------------------------------- pictures


def test_the_picture_of_groups_says_what_fills_them_up():
    assert figures.group_boxes(M, 3).caption == (
        "A 3 x 6 matrix in groups of 3: 2 groups a row, 6 in all. "
        "The largest magnitude of each group, row 0: 0.7, 6.3; row 1: 1.4, 2.1; row 2: 0.35, 14."
    )
    assert "The last group of a row holds 2, filled up with 2 zeros." in figures.group_boxes(N, 4).caption


def test_the_picture_of_prices_names_what_is_not_beaten():
    lines = {"a": [(1, 1), (3, 4)], "b": [(2, 3), (4, 3)]}
    caption = figures.price_curves({"both": lines}, "T", "cost", "quality").caption
    assert caption == "T: quality over cost. 4 ways from 1 to 4, 1 to 4. " + (
        "Not beaten by any that costs no more: a at 1: 1; b at 2: 3; a at 3: 4."
    )


def test_equal_points_and_ties_on_a_frontier():
    assert frontier({}) == []
    assert frontier({"dear": (2, 5), "cheap": (1, 5), "worse": (1, 4)}) == ["cheap"]
    assert frontier({"first": (1, 5), "same": (1, 5)}) == ["first"]
