"""The web pages of `make html`: they stand alone, lead to each other, and say in words what their pictures show."""

import re
import unicodedata
from urllib.parse import unquote

import bs4
import math_core
import nbformat
import pytest
from fontTools.ttLib import TTFont

from course.exercises.exercise import all_exercises
from scripts.pages import build
from tests.lessons import LESSONS, OTHER_NOTEBOOKS, ROOT, exercises_of

NOTEBOOKS = sorted([*OTHER_NOTEBOOKS, *LESSONS])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{file name: parsed page} of all notebooks as they are on disk."""
    folder = tmp_path_factory.mktemp("site")
    build.build(folder, [ROOT / "notebooks" / name for name in NOTEBOOKS])
    return {path.name: bs4.BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in folder.glob("*.html")}


def of_one(tmp_path, *cells):
    """The page of a notebook with these cells."""
    cells = [nbformat.v4.new_markdown_cell("# 1. A lesson"), *cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_a_lesson.ipynb")
    build.build(tmp_path / "site", [tmp_path / "01_a_lesson.ipynb"])
    return bs4.BeautifulSoup((tmp_path / "site" / "01_a_lesson.html").read_text("utf-8"), "html.parser")


def cell_with(**data):
    output = nbformat.v4.new_output("display_data", {kind.replace("_", "/"): value for kind, value in data.items()})
    return nbformat.v4.new_code_cell("x", outputs=[output])


# ---------------------------------------------------------------- all pages


def test_there_is_a_page_for_every_notebook_and_the_start_page_comes_first(site):
    assert set(site) == {build.page_name(name) for name in NOTEBOOKS}
    assert site["index.html"].h1.get_text().startswith("Start here")


def test_nothing_is_fetched_but_the_style_sheet_beside_the_page(site):
    for name, page in site.items():
        fetched = [tag.get("src") or tag.get("href") for tag in page.select("[src], link[href]")]
        assert {url for url in fetched if not url.startswith("data:")} == {"style.css"}, name
        assert not page.find(["script", "iframe", "object", "embed", "base", "form"]), name
        assert "url(" not in " ".join(tag["style"] for tag in page.select("[style]")), name
    assert set(re.findall(r"url\((\S{6})|(@import)", build.style())) == {('"data:', "")}


def test_every_link_inside_the_site_leads_to_a_place_that_is_there(site):
    places = {name: {tag["id"] for tag in page.select("[id]")} for name, page in site.items()}
    for name, page in site.items():
        for tag in page.select("a[href]"):
            target, _, anchor = unquote(tag["href"]).partition("#")
            if "://" not in target:
                assert (target or name) in places, f"{name}: {tag['href']}"
                assert not anchor or anchor in places[target or name], f"{name}: {tag['href']}"


def test_every_place_of_a_page_has_a_name_of_its_own(site):
    for name, page in site.items():
        ids = [tag["id"] for tag in page.select("[id]")]
        assert len(set(ids)) == len(ids), name


def test_every_picture_has_its_caption_as_its_text(site):
    for name, page in site.items():
        for picture in page.find_all("img"):
            assert len(picture["alt"]) > 20 and re.search(r"\d", picture["alt"]), name
            assert picture["alt"] in page.get_text(), name
    assert len(site[build.page_name(LESSONS[2])].find_all("img")) >= 6


def test_every_formula_is_mathml_and_its_signs_are_in_the_font(site):
    known = TTFont(build.HERE / "math.woff").getBestCmap()
    for name, page in site.items():
        for formula in page.find_all("math"):
            signs = set(formula.get_text()) - {"\n"}
            assert all(ord(sign) in known for sign in signs), f"{name}: {formula}"
        prose = [text for text in page.find_all(string=True) if not text.find_parent(["code", "pre", "math"])]
        assert not re.search(r"\$[^$]+\$|\\[a-zA-Z]{2,}", " ".join(prose)), name


def test_the_font_has_the_italic_of_every_letter():
    known = TTFont(build.HERE / "math.woff").getBestCmap()
    italic = {unicodedata.normalize("NFKC", chr(code)) for code in known if 0x1D434 <= code <= 0x1D71B} | {"h"}
    assert set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZαβγδεζηθικλμνξπρστυφχψω") <= italic


def test_the_lessons_follow_one_another(site):
    chain = ["index.html", *map(build.page_name, LESSONS)]
    for page, after in zip(chain, [*chain[1:], None]):
        following = site[page].select_one("a[rel=next]")
        assert (following and following["href"]) == after
        assert after is None or site[after].select_one("a[rel=prev]")["href"] == page


def test_the_hints_and_the_solution_of_an_exercise_are_folded(site):
    for lesson in LESSONS:
        exercises = exercises_of(lesson)
        offered = site[build.page_name(lesson)].select(".help")
        assert len(offered) == len(exercises)
        for help_, exercise in zip(offered, exercises):
            folded = help_.find_all("details", recursive=False)
            assert len(folded) == len(exercise.hints) + 1
            assert not any(tag.has_attr("open") for tag in folded)
            assert folded[-1].pre.get_text().strip() == exercise.solution().strip()


# ---------------------------------------------------------------- cells


def test_a_widget_is_shown_as_its_picture_and_without_one_as_its_words(tmp_path):
    widget = {"application_vnd.jupyter.widget-view+json": {"model_id": "0"}}
    page = of_one(
        tmp_path,
        cell_with(**widget, image_png="iVBORw0KGgo=\n", text_plain='Scale "s" <0.5>, 3 of 4 codes'),
        cell_with(**widget, text_plain="Only words & numbers"),
    )
    assert page.img["alt"] == 'Scale "s" <0.5>, 3 of 4 codes'
    assert page.img["src"] == "data:image/png;base64,iVBORw0KGgo="
    assert page.select(".outputs")[1].get_text() == "Only words & numbers"


def test_an_error_and_a_print_are_shown_as_they_were(tmp_path):
    cell = nbformat.v4.new_code_cell("1 / 0")
    cell.outputs = [
        nbformat.v4.new_output("stream", text="a < b\n"),
        nbformat.v4.new_output("error", ename="E", evalue="e", traceback=["\x1b[31mZeroDivisionError\x1b[0m: &"]),
    ]
    assert [pre.get_text() for pre in of_one(tmp_path, cell).select(".outputs pre")] == [
        "a < b\n",
        "ZeroDivisionError: &",
    ]


def test_a_quiz_stays_folded_and_a_heading_keeps_jupyterlabs_anchor(tmp_path):
    quiz = "<details><summary>A. Yes</summary>Right: `x` & so.</details>"
    page = of_one(tmp_path, nbformat.v4.new_markdown_cell(f"## How large is `q`, then?\n\n{quiz}"))
    assert page.h2["id"] == "How-large-is-q,-then?"
    assert page.select_one(".sections a")["href"] == "#How-large-is-q,-then?"
    assert page.details.summary.get_text() == "A. Yes"


def test_a_cell_that_offers_help_only_of_an_exercise_that_there_is(tmp_path):
    exercise = next(iter(all_exercises()))
    cell = nbformat.v4.new_code_cell(f'# hint("{exercise}")\n# solution("{exercise}")')
    assert of_one(tmp_path, cell).select(".help")
    cell = nbformat.v4.new_code_cell(f'hint("{exercise}")\n# solution("{exercise}")')
    assert not of_one(tmp_path, cell).select(".help")


def test_a_page_whose_notebook_is_gone_goes_too(tmp_path):
    of_one(tmp_path)
    (tmp_path / "site" / "old.html").write_text("old")
    of_one(tmp_path)
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == ["01_a_lesson.html", "style.css"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("03_quantize.ipynb", "03_quantize.html"),
        ("03_quantize.ipynb#Two-ends,-two-equations", "03_quantize.html#Two-ends,-two-equations"),
        ("00_start_here.ipynb", "index.html"),
        ("#Quiz", "#Quiz"),
        ("https://example.org/a.ipynb", "https://example.org/a.ipynb"),
    ],
)
def test_a_link_between_notebooks_becomes_one_between_pages(link, expected):
    assert build.page_link(link) == expected


# ---------------------------------------------------------------- formulas


def drawn(formula):
    """What a formula draws, in order: (tag, text) of what holds text, and spaces as their width."""
    tags = bs4.BeautifulSoup(build.mathml(formula, display=False), "html.parser").select("mi, mo, mn, mspace")
    parts = [(tag.name, tag.get_text().strip("\u2061") or tag.get("width")) for tag in tags]
    return [(name, shown) for name, shown in parts if shown]


def test_names_of_functions_are_spaced_as_tex_does_it():
    thin = ("mspace", "0.1667em")
    assert drawn(r"\max |r|") == [("mi", "max"), thin, ("mo", "|"), ("mi", "r"), ("mo", "|")]
    assert drawn(r"\exp(x)") == [("mi", "exp"), ("mo", "("), ("mi", "x"), ("mo", ")")]
    assert drawn(r"q_{\min}") == [("mi", "q"), ("mi", "min")]


def test_a_minus_that_is_a_sign_stands_close_and_one_between_numbers_does_not():
    for formula, signs in {"x = -2": 1, "(-1)^n": 1, r"0 \;\le\; -z": 1, "q - z": 0, "(q s + z) - s": 0}.items():
        assert build.mathml(formula, display=False).count('<mo lspace="0" rspace="0">−') == signs, formula


def test_words_in_a_formula_are_names_between_which_a_plus_has_room():
    made = build.mathml(r"\text{two words} + \text{a}", display=True)
    assert [tag.name for tag in bs4.BeautifulSoup(made, "html.parser").math.find_all(True)] == ["mi", "mo", "mi"]


def test_a_formula_that_cannot_be_read_is_no_page():
    with pytest.raises(math_core.LatexError):
        build.mathml(r"\frac{1", display=True)
