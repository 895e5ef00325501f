"""Pictures of lessons as a learner sees them: JupyterLab in both themes, in a wide and a narrow window.

`python -m scripts.screenshots FOLDER NOTEBOOK...` opens and runs each notebook, and writes a picture of every screen of
it, as FOLDER/03_dark_800_00.png.
"""

import sys
import tempfile
from pathlib import Path

import tqdm
from playwright.sync_api import sync_playwright

from scripts.browser import THEMES, WIDTHS, Lab, LessonPage, new_context, start_browser

OVERLAP = 40  # pixels that a screen shows of the one above


def main(folder, *notebooks):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser, lab = start_browser(playwright), Lab(Path(home))
        try:
            lab.wait()
            for notebook in tqdm.tqdm(notebooks):
                take(browser, lab, Path(notebook).name, folder)
        finally:
            lab.stop()
            browser.close()
    print(f"Written: {folder}")


def take(browser, lab, notebook, folder):
    """Open a notebook, run it, and write its pictures."""
    context = new_context(browser)
    lesson = LessonPage(context, lab, notebook).open()
    lesson.run_all()
    for theme in THEMES:
        lesson.theme(theme)
        for width in WIDTHS:
            lesson.resize(width)
            for number, picture in enumerate(screens(lesson)):
                (folder / f"{notebook[:2]}_{theme}_{width}_{number:02d}.png").write_bytes(picture)
    lesson.close()
    context.close()


def screens(lesson):
    """The notebook from top to bottom, a screen at a time, as PNG files."""
    top, height = 0, 1
    while top < height:
        lesson.call("scroll", top)
        lesson.call("settled")
        height, seen = lesson.call("scroll", top)  # asked again: cells that come into sight may change it
        yield lesson.page.screenshot()
        top += seen - OVERLAP


if __name__ == "__main__":
    main(*sys.argv[1:])
