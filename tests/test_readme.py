"""What the README says is so: its example runs, its table lists the lessons, its commands exist."""

import re

import torch

from qlib import QTensor
from qlib.report import file_bytes, state_dict_bytes
from tests.lessons import LESSONS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_quantizes_a_model_and_brings_it_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 64), torch.nn.Linear(64, 256), torch.nn.LayerNorm(256))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    namespace = {"model": model}
    exec(code, namespace)
    assert file_bytes("model-int4.safetensors") < state_dict_bytes(before) / 6
    assert sum(isinstance(tensor, QTensor) for tensor in namespace["state"].values()) == 2
    after = model.state_dict()
    assert torch.equal(after["2.weight"], before["2.weight"])
    step = namespace["state"]["1.weight"].scale.max()
    assert 0 < (after["1.weight"] - before["1.weight"]).abs().max() <= 0.501 * step


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
