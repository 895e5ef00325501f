"""What the README says is so: its example runs, its table lists the lessons, its commands exist."""

import re

from qlib import QLinear
from qlib.report import file_bytes, state_dict_bytes
from tests.lessons import LESSONS, OTHER_NOTEBOOKS, ROOT
from tests.tiny_models import outputs, tiny_model

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_quantizes_a_model_and_brings_it_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    before = tiny_model("Llama")
    names = {"model": tiny_model("Llama")}
    exec(code, names)
    assert "14 layers quantized" in capsys.readouterr().out
    assert isinstance(names["model"].model.layers[0].mlp.up_proj, QLinear)
    assert file_bytes("model-int4") < state_dict_bytes(before.state_dict()) / 2  # its embeddings stay float
    apart = (outputs(names["model"])[0] - outputs(before)[0]).square().mean()
    assert 0 < apart < outputs(before)[0].square().mean() / 10


def test_the_table_links_every_lesson_that_is_there_and_no_other():
    assert re.findall(r"^\| \d+ \| \[.+?\]\(notebooks/(\S+\.ipynb)\)", README, re.M) == LESSONS


def test_it_links_the_start_page_and_the_glossary():
    assert set(OTHER_NOTEBOOKS) <= set(re.findall(r"\(notebooks/(\S+\.ipynb)\)", README))


def test_the_commands_it_names_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"`make ([a-z-]+)", README) + re.findall(r"^make ([a-z-]+)", README, re.M)
    assert len(set(named)) >= 5
    assert set(named) <= set(targets)


def test_the_pictures_it_shows_are_there():
    pictures = re.findall(r"!\[.+?\]\((\S+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_it_says_where_each_module_of_both_packages_is():
    for package in ("qlib", "course"):
        listed = re.search(rf"^{package}/ .*\n((?:  \S.*\n)+)", README, re.M)[1]
        modules = [path.name for path in (ROOT / package).glob("[!_]*.py")]
        modules += [f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")]
        assert sorted(re.findall(r"^  (\S+)", listed, re.M)) == sorted(modules)


def test_the_files_and_folders_that_it_names_are_there():
    named = re.findall(r"`((?:course|tests|scripts|data|notebooks|bench|\.ci)/[\w./]*)`", README)
    assert len(named) > 5
    for name in named:
        assert list(ROOT.glob(name.replace("NN", "03"))), name
