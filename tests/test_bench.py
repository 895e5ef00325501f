"""The benchmark's harness, on tiny sizes and without peers. No time is compared with another."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch

from bench import __main__ as bench
from bench import measure, show
from bench.ways import WAYS, Way

TINY = measure.Sizes(
    shapes=((24, 128), (40, 128)),
    batches=(1, 9),
    vocabulary=64,
    width=128,
    inner=128,
    depth=1,
    heads=2,
    prompt=12,
    tokens=2,
    rounds=2,
    from_memory=40_000,
    least=0.0,
)
OWN = [way for way in WAYS if way.peer is None and (way.name == "float32" or way.name.startswith("qlib"))]
WITHOUT_PEERS = [way for way in WAYS if way.peer is None]


def test_every_way_has_its_own_name():
    assert len({way.name for way in WAYS}) == len(WAYS)


@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", WITHOUT_PEERS, ids=lambda way: way.name)
def test_a_way_computes_the_product_within_its_bits_error(way, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 48, bias=bias).requires_grad_(False)
    before = copy.deepcopy(layer)
    own = measure.converted(way, layer)
    assert torch.equal(layer.weight, before.weight), "the layer that the others start from was changed"
    for batch in (1, 3, 20):
        x = torch.randn(batch, 256)
        y = own(x.to(way.dtype))
        assert y.dtype == way.dtype
        assert measure.distance(y, layer(x)) < way.tolerance


def test_a_way_that_computes_something_else_is_not_timed():
    halved = Way("half", 32, torch.float32, lambda model: [torch.nn.Sequential(model[0], Half())])
    layer = torch.nn.Linear(16, 8, bias=False).requires_grad_(False)
    with pytest.raises(measure.WrongResultError, match="off by 50%"):
        measure.LayerRuns(halved, layer, TINY)


class Half(torch.nn.Module):
    def forward(self, x):
        return x / 2


def test_the_table_and_the_picture_are_written(tmp_path):
    bench.run(OWN, TINY, ["layers", "model"], tmp_path)
    page = (tmp_path / "results.md").read_text()
    for way in OWN:
        assert sum(line.startswith(f"| {way.name} |") for line in page.splitlines()) == 3  # two shapes and the model
    assert "Everything ran." in page
    assert (tmp_path / "results.png").stat().st_size > 10_000
    places = json.loads((tmp_path / "results.json").read_text())["layers"]["measured"]
    assert list(places) == [f"{rows} × {columns}, batch {batch}" for rows, columns in TINY.shapes for batch in (1, 9)]
    for found in places.values():
        low, median, high = found["qlib 4-bit"]["ratio"]
        assert 0 < low <= median <= high


def test_a_way_that_fails_is_a_line_with_the_reason(tmp_path):
    def missing(model):
        raise ModuleNotFoundError("No module named 'peer'")

    ways = [*OWN[:1], Way("a peer", 8, torch.float32, missing, "peer")]
    bench.run(ways, TINY, ["layers"], tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "| a peer | – | – | – |" in page
    assert "- a peer: ModuleNotFoundError: No module named 'peer' (" in page


def test_ratios_compare_a_run_with_the_float32_runs_around_it():
    [figures] = measure.figures([((2.0,), (4.0,)), ((1.0,), (3.0,)), ((3.0,), (3.0,))])
    assert figures == {"seconds": 2.0, "ratio": [1.5, 2.0, 2.5]}


def test_a_part_that_is_not_measured_again_keeps_its_results(tmp_path):
    bench.run(OWN[:2], TINY._replace(shapes=((8, 16),)), ["layers"], tmp_path)
    bench.run(OWN[:2], TINY, ["model"], tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "## One layer, 8 × 16" in page and "## A whole model" in page


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells how much memory was in use")
def test_the_memory_of_a_model_is_that_of_its_weights():
    sizes = TINY._replace(vocabulary=40_000, width=256)
    parameters = sum(weight.nbytes for weight in measure.llama(sizes).parameters())
    memory = measure.measure_memory(OWN[:1], sizes, lambda: None)["float32"]
    assert memory["at rest"] == pytest.approx(parameters, rel=0.2)
    assert memory["running"] >= memory["at rest"]


def test_the_progress_bar_ends_at_its_total():
    for part in ("layers", "model"):
        steps = itertools.count()
        bench.PARTS[part](OWN[:2], TINY, steps.__next__)
        assert next(steps) == bench.steps(part, OWN[:2], TINY)


def test_a_version_that_is_not_there_says_so():
    assert show.version("no-such-package") == "is missing"
