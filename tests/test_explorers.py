"""The lessons' explorers: controls that move a picture and the words under it, and the picture that is left of them."""

import copy
import html
import itertools
import re
import xml.etree.ElementTree

import ipywidgets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.figures import lesson_01, lesson_03, lesson_05, lesson_08, lesson_09, lesson_14, lesson_17
from course.models import DATA, load_digits, load_digits_conv, load_encoder
from qlib import Scheme, dequantize, load_tensors, quantize, quantize_tensor
from qlib.affine import asymmetric_qparams
from qlib.methods.static import fuse_batch_norms
from qlib.observers import Percentile, calibrate, percentile_range, range_error
from qlib.packing import get_field
from qlib.plot import significant
from qlib.report import as_text, bits_per_weight, fit_text, quantization_error, sqnr
from qlib.tensor import fake_quantize
from tests.test_plot import assert_draws

T = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184.0], [0, 684.6, 245.5]])
BILLION = 10**9
WIDGET = "application/vnd.jupyter.widget-view+json"
WAVES = torch.sin(torch.arange(16.0 * 96)).reshape(16, 96)
CENTRED, SKEWED = WAVES**3, WAVES.clamp(min=-0.1) * torch.linspace(0, 3, 96)
PART = slice(4, 12), slice(8, 72)

MAKERS = {
    "fit_calculator": lesson_01.fit_calculator,
    "map_explorer": lambda: lesson_03.map_explorer(T, 3.5, -70),
    "grid_explorer": lambda: lesson_05.grid_explorer({"centred": CENTRED, "skewed": SKEWED}),
    "group_explorer": lambda: lesson_08.group_explorer(SKEWED, *PART),
    "clipping_explorer": lambda: lesson_09.clipping_explorer({"first": CENTRED.abs(), "second": SKEWED.clamp(min=0)}),
    "byte_explorer": lesson_14.byte_explorer,
    "smoothing_explorer": lambda: lesson_17.smoothing_explorer(
        {"first": (SKEWED, WAVES, SKEWED), "second": (CENTRED, WAVES, CENTRED)}
    ),
}
each_explorer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def stops(control):
    """All values that a control can take."""
    if isinstance(control, ipywidgets.Checkbox):
        return [False, True]
    if hasattr(control, "_options_full"):
        return [value for _, value in control._options_full]
    count = round((control.max - control.min) / control.step)
    return [type(control.value)(control.min + place * control.step) for place in range(count + 1)]


def picture_of(explorer):
    """The live picture of an explorer, which must be well-formed."""
    picture, words = xml.etree.ElementTree.fromstring(f"<div>{explorer.shown.value}</div>")
    assert words.text == explorer.text
    return xml.etree.ElementTree.tostring(picture, encoding="unicode")


def set_to(explorer, **values):
    for name, value in values.items():
        explorer.controls[name].value = value
    return explorer


# ---------------------------------------------------------------- what holds of all of them


@each_explorer
def test_every_stop_of_every_control_has_a_text_of_its_own_and_moves_the_picture(make):
    explorer = make()
    for control in explorer.controls.values():
        begun, texts, pictures = control.value, [], set()
        for value in stops(control):
            control.value = value
            texts.append(explorer.text)
            pictures.add(picture_of(explorer))
            said = re.sub(r"base64,[^\"]*", "", explorer.shown.value)
            assert not any(bad in said for bad in ("nan", "None"))
        assert len(set(texts)) == len(texts) > 1, control.description
        assert len(pictures) > 1, control.description
        control.value = begun


@each_explorer
def test_the_controls_can_all_stand_at_either_end(make, tmp_path):
    explorer = make()
    for end in (0, -1):
        set_to(explorer, **{name: stops(control)[end] for name, control in explorer.controls.items()})
        picture_of(explorer)
        assert_draws(explorer.picture, tmp_path / "still.png")


@each_explorer
def test_what_is_shown_depends_on_where_the_controls_stand_and_not_on_how_they_came_there(make):
    explorer = make()
    begun = explorer.values, explorer.shown.value
    for control in explorer.controls.values():
        control.value = stops(control)[0]
        control.value = stops(control)[-1]
    set_to(explorer, **begun[0])
    assert explorer.shown.value == begun[1]


@each_explorer
def test_a_saved_notebook_keeps_the_picture_and_a_running_one_shows_the_widget_in_its_place(make, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    explorer = make()
    explorer._ipython_display_()
    image, words = shown
    assert image.keys() - {WIDGET} == {"image/png", "text/plain"}
    assert words["text/markdown"] == f"*{explorer.text}*"
    assert image["text/plain"] == words["text/plain"] == explorer.text == repr(explorer) == explorer.picture.caption
    live, nothing = (data[WIDGET]["model_id"] for data in shown)
    assert live == explorer.widget.model_id != nothing


@each_explorer
def test_the_controls_have_labels_and_take_the_arrow_keys_and_the_words_are_announced(make):
    explorer = make()
    assert all(control.description for control in explorer.controls.values())
    # JupyterLab takes the arrow keys and the letters from menus, radio buttons and lists.
    taken = (ipywidgets.Dropdown, ipywidgets.RadioButtons, ipywidgets.Select)
    assert not any(isinstance(control, taken) for control in explorer.controls.values())
    picture, words = xml.etree.ElementTree.fromstring(f"<div>{explorer.shown.value}</div>")
    assert picture.get("aria-hidden") == "true" and words.get("role") == "status"


@each_explorer
def test_a_change_is_one_update_that_draws_no_figure_and_sends_little(make, monkeypatch):
    explorer, calls = make(), []
    live = explorer.live
    monkeypatch.setattr(explorer, "live", lambda **values: calls.append(values) or live(**values))
    monkeypatch.setattr("qlib.plot.Figure", None)
    for control in explorer.controls.values():
        for value in stops(control)[:3]:
            if value != control.value:
                calls.clear()
                control.value = value
                assert len(calls) == 1
                assert len(explorer.shown.value) < 60_000


def counted(monkeypatch, module, name):
    """The calls of a function of a lesson's figures, from now on."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(args) or function(*args))
    return calls


def test_the_matrix_is_quantized_once_a_change(monkeypatch):
    explorer = MAKERS["group_explorer"]()
    calls = counted(monkeypatch, lesson_08, "fake_quantize")
    set_to(explorer, bits=3, granularity="each row", zero_point=False)
    assert len(calls) == 3


def test_a_range_that_was_seen_is_not_measured_again(monkeypatch):
    calls = counted(monkeypatch, lesson_09, "Clip")
    explorer = MAKERS["clipping_explorer"]()
    assert len(calls) == 2, "the range, and the whole range beside it"
    set_to(explorer, percent=90)
    assert len(calls) == 3
    set_to(explorer, percent=99)
    assert len(calls) == 3


# ---------------------------------------------------------------- lesson 1: will it fit?


def test_the_calculator_says_what_fit_text_says():
    calculator = lesson_01.fit_calculator()
    assert calculator.text == fit_text(70 * BILLION, 4, 64, 16 * BILLION, "an NVIDIA T4")
    set_to(calculator, billions=7, bits=16)
    assert calculator.controls["group_size"].disabled
    assert calculator.text == fit_text(7 * BILLION, 16, None, 16 * BILLION, "an NVIDIA T4")
    set_to(calculator, bits=3, group_size=128, device="an NVIDIA A100")
    assert not calculator.controls["group_size"].disabled
    assert calculator.text == fit_text(7 * BILLION, 3, 128, 80 * BILLION, "an NVIDIA A100")
    assert lesson_01.fit_calculator(1.5, 2, None, "an NVIDIA RTX 4090").text.startswith(
        "1.5 billion weights of 2 bits take"
    )


def test_what_lesson_1_says_was_seen():
    calculator = lesson_01.fit_calculator()

    def fits(**values):
        return set_to(calculator, **values).text.endswith("they fit.")

    sizes = stops(calculator.controls["billions"])
    assert max(size for size in sizes if fits(billions=size)) == 13
    assert "take 7.5 GB" in set_to(calculator, billions=13).text
    assert "take 19.7 GB" in set_to(calculator, billions=34).text
    set_to(calculator, billions=70)
    devices = stops(calculator.controls["device"])
    assert [device for device in devices if fits(device=device)] == ["an NVIDIA A100"]
    assert fits(bits=8) and not fits(bits=16)
    set_to(calculator, device="an NVIDIA RTX 4090")
    ways = itertools.product(stops(calculator.controls["bits"]), stops(calculator.controls["group_size"]))
    assert [way for way in ways if fits(bits=way[0], group_size=way[1])] == [(2, None), (2, 64), (2, 128)]
    assert "take 28.4 GB" in set_to(calculator, bits=2, group_size=32).text


# ---------------------------------------------------------------- lesson 3: scale, zero point, rounding, ends


@given(st.integers(10, 80), st.integers(-128, 127))
def test_the_map_is_that_of_quantize_and_dequantize(tenths, zero_point):
    scale = tenths / 10
    mapped = lesson_03.LinearMap(T, scale, zero_point)
    values = quantize(T, scale, zero_point)
    back = dequantize(values, scale, zero_point)
    assert torch.equal(mapped.values, values) and torch.equal(mapped.back, back)
    assert f"Mean squared error {as_text(quantization_error(T, back), 3)}." in mapped.text
    unclamped = torch.round(T / scale + zero_point)
    outside = (unclamped != unclamped.clamp(-128, 127)).sum().item()
    assert f"Outside of that: {outside or 'none'} of 9 numbers" in mapped.text


@given(st.integers(10, 80), st.integers(-128, 127))
def test_what_is_not_clamped_wraps_around_as_a_cast_does(tenths, zero_point):
    scale = tenths / 10
    whole = (T / scale + zero_point).round()
    wrapped = lesson_03.LinearMap(T, scale, zero_point, beyond="wrapped around").values
    assert torch.equal(wrapped, whole.to(torch.int32).to(torch.int8))


@pytest.mark.parametrize(("rounding", "function"), [("down", np.floor), ("towards zero", np.fix)])
def test_the_other_roundings_are_those_of_numpy(rounding, function):
    mapped = lesson_03.LinearMap(T, 3.7, -70, rounding)
    np.testing.assert_array_equal(mapped.values, function((T / 3.7 - 70).numpy()).astype(np.int8))


def test_the_cells_and_lines_are_those_of_the_map(tmp_path):
    picture = lesson_03.map_picture(T, 3.5, -70)
    top, bottom = picture.figure.axes
    words = [text.get_text() for text in bottom.texts]
    assert words[0] == "191.6 → -15 → 192.5\nerror 0.9" and words[2] == "728.6 → 127 → 689.5\nerror -39.1"
    drawn = [line.get_xdata() for line in top.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(drawn, torch.stack([T.flatten(), lesson_03.LinearMap(T, 3.5, -70).back.flatten()], 1))
    assert {text.get_text() for text in top.texts} == {"-128", "-70", "127"}
    assert_draws(picture, tmp_path / "map.png")


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2), torch.tensor([[-5.0]]), torch.tensor([[1e9, -1e-9]])], ids=repr)
def test_any_small_matrix_can_be_explored(tensor, tmp_path):
    explorer = lesson_03.map_explorer(tensor, 3.5, 0)
    picture_of(explorer)
    assert_draws(explorer.picture, tmp_path / "map.png")


def test_what_lesson_3_says_was_seen():
    def error_of(*how):
        return quantization_error(T, lesson_03.LinearMap(T, *how).back)

    assert 255 * 3.5 == 892.5 and round((T.max() - T.min()).item(), 1) == 912.6
    errors = {zero_point: error_of(3.5, zero_point) for zero_point in range(-128, 128)}
    assert all(lesson_03.LinearMap(T, 3.5, zero_point).beyond.any() for zero_point in errors)
    assert min(errors, key=errors.get) == -78 and round(errors[-78], 1) == 23.4
    assert len({error_of(3.7, zero_point) for zero_point in range(-78, -69)}) == 1
    down = lesson_03.LinearMap(T, 3.7, -70, "down")
    assert [error < 0 for *_, error in down.cells] == [number != 0 for number, *_ in down.cells]
    errors = [error_of(3.7, -70), error_of(3.7, -70, "down"), error_of(3.7, -70, "towards zero"), error_of(8.0, -70)]
    assert [round(error, 2) for error in errors] == [0.61, 5.08, 4.60, 4.41]
    wrapped = lesson_03.LinearMap(T, 3.5, -70, "to the nearest", "wrapped around")
    assert wrapped.back[0, 2] == -168 and round(quantization_error(T, wrapped.back)) == 89322


# ---------------------------------------------------------------- lesson 5: bits and mode


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()[0]


@pytest.fixture(scope="module")
def lesson_5(encoder):
    weight = encoder.encoder.layer[0].attention.self.query.weight.detach()
    return {"query weight": weight, "after GELU": load_tensors(DATA / "activations.safetensors")["gelu"]}


def test_the_grid_says_what_the_library_finds(lesson_5):
    explorer = lesson_05.grid_explorer(lesson_5)
    for label, symmetric, bits in itertools.product(lesson_5, (True, False), range(2, 9)):
        set_to(explorer, numbers=label, mode="symmetric" if symmetric else "asymmetric", bits=bits)
        qtensor = quantize_tensor(lesson_5[label], Scheme(bits, symmetric, axis=None))
        back = qtensor.dequantize()
        assert f"{len(qtensor.values.unique())} of {2**bits} codes used" in explorer.text
        assert f"mean squared error {significant(quantization_error(lesson_5[label], back))}" in explorer.text
        assert f"SQNR {as_text(sqnr(lesson_5[label], back), 1)} dB" in explorer.text


def test_the_explorer_says_what_the_picture_of_the_same_grid_says(lesson_5):
    explorer = lesson_05.grid_explorer(lesson_5, bits=4, mode="symmetric")
    weight = lesson_5["query weight"]
    qparams = lesson_05.mode_qparams(weight, 4, "symmetric")
    assert explorer.text == repr(lesson_05.grid_over_histogram(weight, *qparams, 4, "query weight, symmetric"))
    assert picture_of(explorer).count("path") == 3


def test_what_lesson_5_says_was_seen(lesson_5):
    explorer = lesson_05.grid_explorer(lesson_5)

    def decibels(**values):
        return float(set_to(explorer, **values).text.split("SQNR ")[1].split(" dB")[0])

    def gain(bits):
        scheme = [Scheme(bits, symmetric, axis=None) for symmetric in (True, False)]
        symmetric, asymmetric = (
            sqnr(lesson_5["query weight"], fake_quantize(lesson_5["query weight"], s)) for s in scheme
        )
        return round(asymmetric - symmetric, 1)

    assert (gain(8), gain(3)) == (0.7, 1.6)
    assert "7 of 8 codes" in set_to(explorer, mode="symmetric", bits=3).text
    set_to(explorer, numbers="after GELU")
    for bits, used in ((8, 115), (4, 8), (2, 2)):
        assert f"{used} of {2**bits} codes used" in set_to(explorer, bits=bits).text
    modes = ("symmetric", "asymmetric")
    fewest = {mode: min(b for b in range(2, 9) if decibels(mode=mode, bits=b) >= 24) for mode in modes}
    assert fewest == {"symmetric": 7, "asymmetric": 6}


# ---------------------------------------------------------------- lesson 8: granularity, bits and mode


@pytest.fixture(scope="module")
def outlier_matrix(encoder):
    return encoder.encoder.layer[0].output.dense.weight.detach()


NEAR = slice(92, 108), slice(832, 896)


def test_the_groups_cost_what_a_qtensor_costs_and_lose_what_it_loses():
    explorer = MAKERS["group_explorer"]()
    names = list(explorer.controls)
    for values in itertools.product(*map(stops, explorer.controls.values())):
        set_to(explorer, **dict(zip(names, values, strict=True)))
        granularity, bits, zero_point = values
        qtensor = quantize_tensor(SKEWED, Scheme(bits, not zero_point, **lesson_08.GRANULARITIES[granularity]))
        assert explorer.text.startswith(f"{qtensor.scheme}: {as_text(qtensor.bits_per_weight, 3)} bits a weight, ")
        assert f"SQNR of the whole matrix {as_text(sqnr(SKEWED, qtensor.dequantize()), 1)} dB" in explorer.text


def test_what_lesson_8_says_was_seen(outlier_matrix):
    explorer = lesson_08.group_explorer(outlier_matrix, *NEAR, granularity="the matrix")
    assert "99.9% of the weights come back as 0" in explorer.text
    back = fake_quantize(outlier_matrix, Scheme(4, False, group_size=8))
    hole = back[99, 856 // 8 * 8 : 856 // 8 * 8 + 8]
    assert (hole == 0).sum() == 7
    assert ": 9 bits a weight" in set_to(explorer, granularity="each 8").text
    assert ": 8 bits a weight" in set_to(explorer, zero_point=False).text
    ways = []
    for granularity, bits, zero_point in itertools.product(lesson_08.GRANULARITIES, (2, 3, 4, 5, 6, 8), (True, False)):
        scheme = Scheme(bits, not zero_point, **lesson_08.GRANULARITIES[granularity])
        price = bits_per_weight(outlier_matrix.shape, scheme)
        if price < 5.1 and (quality := sqnr(outlier_matrix, fake_quantize(outlier_matrix, scheme))) > 21:
            ways.append((granularity, bits, zero_point, round(price, 2), round(quality, 2)))
    assert ways == [("each row", 5, True, 5.03, 21.57)]


# ---------------------------------------------------------------- lesson 9: clipping


def test_the_error_of_a_range_is_that_of_an_observers_range():
    values = SKEWED.clamp(min=0).double().flatten()
    explorer = lesson_09.clipping_explorer({"layer": values})
    for percent, bits in itertools.product(lesson_09.PERCENTS, (2, 4, 8)):
        set_to(explorer, percent=percent, bits=bits)
        low, high = percentile_range(values, percent)
        assert f"Mean squared error {significant(range_error(values, low, high, bits), 3)}:" in explorer.text
        whole = range_error(values, values.min(), values.max(), bits)
        assert explorer.text.endswith(f"With the whole range it would be {significant(whole, 3)}.")
        scale, _ = asymmetric_qparams(low, high, bits)
        assert f"a step {significant(scale.item(), 3)};" in explorer.text


def test_what_lesson_9_says_was_seen():
    pictures = load_digits()[0][0][:320].double()
    net = copy.deepcopy(fuse_batch_norms(load_digits_conv())).double()
    with calibrate(net, Percentile) as observers:
        for batch in pictures.split(32):
            net(batch)
    inputs = torch.cat(observers["conv2"].seen)

    def errors(bits):
        clips = {percent: lesson_09.Clip(inputs, percent, bits, "") for percent in lesson_09.PERCENTS}
        return {percent: clip.rounding + clip.clipping for percent, clip in clips.items()}

    four, eight, two = errors(4), errors(8), errors(2)
    assert [percent for percent in lesson_09.PERCENTS if four[percent] < four[100]] == [
        99.3,
        99.5,
        99.7,
        99.8,
        99.9,
        99.95,
        99.99,
    ]
    assert [min(found, key=found.get) for found in (two, four, eight)] == [98, 99.8, 100]
    assert 0.24 < two[98] / two[100] < 0.26
    assert (inputs > percentile_range(inputs, 98)[1]).double().mean().item() == pytest.approx(1 / 50, rel=0.01)


# ---------------------------------------------------------------- lesson 14: a byte


def test_the_byte_says_what_it_shows():
    explorer = lesson_14.byte_explorer(177, shift=4, keep=2)
    assert explorer.text == (
        "177 is 1011 0001, which holds 1, 0, 3, 2 at 2 bits. >> 4 makes 0000 1011, 11; what falls off the lower end: "
        "0001. & 3 keeps 0000 0011, 3."
    )
    set_to(explorer, shift=-3)
    assert "<< 3 makes 1000 1000, 136; what falls off the upper end: 101. & 3 keeps 0000 0000, 0." in explorer.text
    set_to(explorer, shift=0, keep=8, number=255, bits=4)
    assert "255 is 1111 1111, which holds 15, 15 at 4 bits. >> 0 makes 1111 1111, 255;" in explorer.text
    assert html.escape("; what falls off the lower end: nothing. & 255 keeps") in explorer.shown.value
    assert picture_of(explorer).count("inline-block; width: 2em") == 24, "three bytes of eight boxes"


BYTE = lesson_14.byte_explorer()


@given(st.integers(0, 255), st.integers(-8, 8), st.integers(1, 8))
def test_the_byte_is_right_wherever_its_sliders_stand(number, shift, keep):
    text = set_to(BYTE, number=number, shift=shift, keep=keep).text
    moved = (number << 8 >> (8 + shift)) & 255
    assert f", {moved}; what falls off" in text
    assert text.endswith(f", {moved % 2**keep}.")
    if shift >= 0 and keep + shift <= 8:
        assert text.endswith(f", {get_field(number, shift, keep)}.")


def test_what_lesson_14_says_was_seen():
    fourth, upper = get_field(177, 6, 2), get_field(177, 4, 4)
    assert lesson_14.byte_explorer(177, shift=6, keep=2).text.endswith(f", {fourth}.")
    for keep in range(4, 9):
        assert lesson_14.byte_explorer(177, shift=4, keep=keep, bits=4).text.endswith(f", {upper}.")
    same = {
        number: number >> 2 for number in range(1, 256) if len({get_field(number, o, 2) for o in (0, 2, 4, 6)}) == 1
    }
    assert same == {85: 21, 170: 42, 255: 63}
    assert all(
        [get_field(after, o, 2) for o in (0, 2, 4)] == [get_field(before, 0, 2)] * 3 for before, after in same.items()
    )
