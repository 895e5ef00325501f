"""Every notebook as a learner meets it: opened, run from top to bottom, looked at."""

import itertools

import pytest

from scripts.browser import THEMES, WIDTHS
from tests.browser.outputs import controls_followed, kinds, still_figures, widgets_in
from tests.lessons import LESSONS, OTHER_NOTEBOOKS, ROOT

NOTEBOOKS = [*LESSONS, *(name for name in OTHER_NOTEBOOKS if (ROOT / "notebooks" / name).is_file())]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs_and_all_of_it_can_be_seen(notebook, open_lesson, lab, record_property):
    stored = lab.stored(notebook).cells
    lesson = open_lesson(notebook)
    lesson.run_all()
    cells = lesson.cells()

    # It ran, and shows what the stored notebook shows.
    for before, after in zip(stored, cells, strict=True):
        if before["cell_type"] == "code":
            assert not [o for o in after["outputs"] if o["output_type"] == "error"], after
            assert after["execution_count"] == before["execution_count"]
            assert kinds(after["outputs"]) == kinds(before["outputs"]), before["source"]

    # All of it is on the page, and can be read.
    lesson.wait_for("shows", still_figures(cells), widgets_in(cells))
    amiss = {name: lesson.call(name) for name in ("complaints", "unsetMath", "openDetails")}
    for theme in THEMES:
        lesson.theme(theme)
        amiss[f"too faint in {theme}"] = lesson.call("tooFaint")
    for width in WIDTHS:
        lesson.resize(width)
        amiss[f"too wide at {width}"] = lesson.call("tooWide")
    assert {name: found for name, found in amiss.items() if found} == {}

    # The table of contents has its headings in order.
    levels = lesson.call("headings")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels

    # Its controls move what they are for, from the keyboard.
    for explorer in range(lesson.call("explorers")):
        followed = controls_followed(lesson, explorer)
        record_property(f"{notebook[:2]}, explorer {explorer + 1}", followed)
        assert all(times["picture"] or times["words"] for times in followed.values()), followed
        assert any(times["picture"] for times in followed.values()), followed
