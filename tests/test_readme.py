"""What the README says is so: its example runs, its table lists the lessons, its commands exist."""

import re

import torch

from qlib import QLinear
from qlib.report import file_bytes, state_dict_bytes
from tests.lessons import LESSONS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_quantizes_a_model_and_brings_it_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).eval()
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    before, nbytes = model(x), state_dict_bytes(model.state_dict())
    exec(code, {"model": model})
    assert "2 layers quantized" in capsys.readouterr().out
    assert [type(layer) for layer in model] == [QLinear, torch.nn.GELU, QLinear]
    assert file_bytes("model-int4.safetensors") < nbytes / 5
    assert 0 < (model(x) - before).abs().max() < 0.1


def test_the_table_links_every_lesson_that_is_there_and_no_other():
    assert re.findall(r"\(notebooks/(\S+\.ipynb)\)", README) == LESSONS


def test_the_commands_it_names_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"`make ([a-z-]+)", README) + re.findall(r"^make ([a-z-]+)", README, re.M)
    assert len(set(named)) >= 5
    assert set(named) <= set(targets)


def test_the_pictures_it_shows_are_there():
    pictures = re.findall(r"!\[.+?\]\((\S+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
