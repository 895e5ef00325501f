"""The figures of lesson 7: scales that broadcast, what an axis means for a product, and what rows repair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from course import helper
from course.figures import lesson_07 as figures
from course.models import embed, load_encoder, load_sentences
from qlib import Scheme, choose_qparams, dequantize, fake_quantize, quantize, quantize_tensor
from qlib.affine import channel_range
from qlib.report import cosine, quantization_error, sqnr
from tests.matrices import T

PER_TENSOR, PER_ROW, PER_COLUMN = (Scheme(axis=axis) for axis in (None, 0, 1))


def spread(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


# ---------------------------------------------------------------- the course's matrix


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (PER_TENSOR, 2.5092),
        (PER_ROW, 1.8084),
        (PER_COLUMN, 1.0781),
        (Scheme(symmetric=False, axis=None), 1.5730),
        (Scheme(symmetric=False, axis=0), 0.4453),
        (Scheme(symmetric=False, axis=1), 0.7363),
    ],
    ids=str,
)
def test_the_courses_figures_and_the_asymmetric_ones(scheme, expected):
    assert quantization_error(T, fake_quantize(T, scheme)) == pytest.approx(expected, abs=5e-5)


def test_the_integers_per_row_and_per_column():
    assert quantize_tensor(T, PER_ROW).values.tolist() == [[33, -2, 127], [40, 127, -79], [0, 127, 46]]
    assert quantize_tensor(T, PER_COLUMN).values.tolist() == [[127, -3, 127], [61, 55, -32], [0, 127, 43]]


@pytest.mark.parametrize("dim", [0, 1])
def test_the_courses_name_gives_the_same_with_a_scale_that_broadcasts(dim):
    quantized, scale = helper.linear_q_symmetric_per_channel(T, dim=dim, dtype=torch.int8)
    assert scale.shape == [(3, 1), (1, 3)][dim]
    assert torch.equal(quantized, quantize_tensor(T, Scheme(axis=dim)).values)
    assert torch.equal(helper.linear_dequantization(quantized, scale, 0), fake_quantize(T, Scheme(axis=dim)))


def test_the_courses_name_takes_int8_only():
    with pytest.raises(ValueError, match=r"torch\.int8"):
        helper.linear_q_symmetric_per_channel(T, 0, dtype=torch.int16)


# ---------------------------------------------------------------- broadcasting


def test_a_scale_without_its_dimension_goes_along_the_columns_of_a_square_matrix_in_silence():
    wrong = T / (T.abs().amax(1) / 127)
    assert (wrong.round() == 127).sum() == 1
    assert (wrong > 127.5).sum() == 2
    with pytest.raises(RuntimeError):
        T[:2] / T[:2].abs().amax(1)


@given(array_shapes(min_dims=2, max_dims=4, max_side=6))
def test_a_channels_range_keeps_its_axis_and_broadcasts(shape):
    tensor = spread(*shape)
    for axis in range(tensor.ndim):
        low, high = channel_range(tensor, axis)
        assert low.shape == high.shape == tuple(n if dim == axis else 1 for dim, n in enumerate(shape))
        assert ((low <= tensor) & (tensor <= high)).all()
        for channel, first, last in zip(tensor.unbind(axis), low.flatten(), high.flatten(), strict=True):
            assert (channel.min(), channel.max()) == (first, last)


@given(st.integers(2, 8), st.booleans())
def test_per_row_is_per_tensor_of_each_row(bits, symmetric):
    tensor = spread(6, 11)
    alone = [quantize_tensor(row, Scheme(bits, symmetric, axis=None)) for row in tensor]
    whole = quantize_tensor(tensor, Scheme(bits, symmetric, axis=0))
    assert torch.equal(whole.values, torch.stack([q.values for q in alone]))
    assert torch.equal(whole.scale.flatten(), torch.stack([q.scale for q in alone]))
    assert torch.equal(whole.dequantize(), torch.stack([q.dequantize() for q in alone]))


@given(st.integers(2, 8), st.booleans())
def test_columns_are_the_rows_of_the_transpose(bits, symmetric):
    tensor = spread(6, 11)
    turned = quantize_tensor(tensor.T, Scheme(bits, symmetric, axis=0))
    whole = quantize_tensor(tensor, Scheme(bits, symmetric, axis=1))
    assert torch.equal(whole.values, turned.values.T)
    assert torch.equal(whole.scale, turned.scale.T)
    assert torch.equal(whole.dequantize(), turned.dequantize().T)


# ---------------------------------------------------------------- matrix products


def test_a_scale_per_row_comes_out_of_the_sum():
    weight, x = spread(5, 7), spread(3, 7)
    scale, zero_point = choose_qparams(weight, PER_ROW)
    q = quantize(weight, scale, zero_point)
    whole = x.double() @ dequantize(q, scale, zero_point).double().T
    torch.testing.assert_close((x.double() @ q.double().T) * scale.T.double(), whole)


def test_a_scale_per_column_goes_into_the_input():
    weight, x = spread(5, 7), spread(3, 7)
    scale, zero_point = choose_qparams(weight, PER_COLUMN)
    q = quantize(weight, scale, zero_point)
    whole = x.double() @ dequantize(q, scale, zero_point).double().T
    torch.testing.assert_close((x.double() * scale.double()) @ q.double().T, whole)


def test_with_integer_inputs_the_sums_per_row_are_integers():
    weight, x = T[:2], torch.tensor([[0.5, -0.9, 2.0]])
    x_scale, _ = choose_qparams(x, PER_TENSOR)
    p = quantize(x, x_scale, 0)
    scale, _ = choose_qparams(weight, PER_ROW)
    sums = p.int() @ quantize(weight, scale, 0).T.int()
    assert sums.tolist() == [[17299, -15992]]
    expected = dequantize(p, x_scale, 0) @ fake_quantize(weight, PER_ROW).T
    torch.testing.assert_close(sums * x_scale * scale.T, expected)


# ---------------------------------------------------------------- the encoder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def outputs(encoder):
    return [layer.output.dense.weight.detach().clone() for layer in encoder[0].encoder.layer]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(8, (8.06, 33.48, 40.51)), (6, (0.49, 25.42, 29.0)), (4, (0.24, 14.03, 16.34)), (2, (0.23, 0.96, 1.70))],
)
def test_what_rows_and_columns_repair(outputs, bits, expected):
    found = [sqnr(outputs[0], fake_quantize(outputs[0], Scheme(bits, axis=axis))) for axis in (None, 0, 1)]
    assert found == pytest.approx(expected, abs=0.01)


def test_columns_win_in_every_layer_but_the_last(outputs):
    gains = [sqnr(w, fake_quantize(w, PER_COLUMN)) - sqnr(w, fake_quantize(w, PER_ROW)) for w in outputs]
    assert all(gain > 1 for gain in gains[:5])
    assert gains[5] < -1
    assert gains[0] == pytest.approx(7, abs=0.1)


def test_what_is_left_is_in_the_row_of_the_outlier(outputs):
    W = outputs[0]
    back = fake_quantize(W, PER_ROW)
    error = (back - W).double()
    rest, ordinary = torch.arange(384) != 99, torch.arange(1536) != 856
    assert error[99].square().sum() / error.square().sum() == pytest.approx(0.72, abs=0.005)
    assert error[99].abs().max() > 6 * error[rest].abs().max()
    assert sqnr(W[rest], back[rest]) == pytest.approx(38.8, abs=0.05)
    assert sqnr(W[99], back[99]) == pytest.approx(22.1, abs=0.05)
    assert sqnr(W[99, ordinary], back[99, ordinary]) == pytest.approx(5.1, abs=0.05)


def test_what_the_model_notices(encoder, outputs):
    model, tokenizer = encoder
    sentences = load_sentences()[:40]
    reference = embed(model, tokenizer, sentences)
    weight, W = model.encoder.layer[0].output.dense.weight, outputs[0]

    def similarity(replaced):
        weight.data.copy_(replaced)
        try:
            return cosine(reference, embed(model, tokenizer, sentences))
        finally:
            weight.data.copy_(W)

    found = [similarity(fake_quantize(W, Scheme(bits, axis=axis))) for bits in (8, 4) for axis in (None, 0)]
    assert found == pytest.approx([0.989, 1.0, 0.950, 0.997], abs=5e-4)
    cut = fake_quantize(W.clamp(max=1.24), PER_TENSOR)
    assert sqnr(W, cut) == pytest.approx(13.9, abs=0.05)
    assert similarity(cut) == pytest.approx(1.0, abs=5e-4)
    noise = (cut - W).double().square()
    assert noise[99, 856] / noise.sum() > 0.8


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 3)], ids=str)
def test_the_picture_of_broadcasting_shows_the_stretched_scales(shape):
    scale = torch.full(shape, 2.0)
    caption = figures.broadcast(T[:2], scale).caption
    assert f"of shape {shape}" in caption
    assert "[2, 2, 2]; [2, 2, 2]" in caption
    assert "from -92 to 364.3 steps" in caption


def test_the_picture_of_a_product_counts_the_scales():
    caption = figures.scales_in_a_matmul(outputs=2, inputs=5).caption
    assert "2 scales, and each multiplies one output after its sum" in caption
    assert "there are 5, and each multiplies one input before the 2 sums" in caption
