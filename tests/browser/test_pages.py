"""The web pages of `make html` in a browser: nothing is missing, nothing is fetched, and they fit the screen."""

from urllib.parse import unquote

import pytest

from scripts.pages import build
from tests.lessons import LESSONS, OTHER_NOTEBOOKS, ROOT

NOTEBOOKS = sorted([*OTHER_NOTEBOOKS, *LESSONS])

SEEN = """() => ({
    pictures: [...document.images].map(picture => [picture.naturalWidth, picture.width, picture.alt.length]),
    formulas: [...document.querySelectorAll('math')].map(formula => {
        const box = formula.getBoundingClientRect();
        return [box.width, box.height];
    }),
    missing: [...document.querySelectorAll('a[href^="#"]')].map(link => decodeURIComponent(link.hash.slice(1)))
        .filter(place => !document.getElementById(place)),
    width: document.documentElement.scrollWidth,
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build.build(folder, [ROOT / "notebooks" / name for name in NOTEBOOKS])
    return folder


@pytest.fixture(params=[("light", 1280), ("dark", 800)], ids=lambda look: f"{look[0]}-{look[1]}")
def page(request, browser):
    """An empty page, and in `asked` all that it asks for; no address is answered but those of files."""
    scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.asked, page.failed = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("requestfailed", lambda asked: page.failed.append(asked.url))
    page.on("console", lambda message: page.failed.append(message.text))
    page.on("pageerror", lambda error: page.failed.append(str(error)))
    yield page
    context.close()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_page_is_whole_and_fits(page, site, notebook):
    page.goto((site / build.page_name(notebook)).as_uri())
    seen = page.evaluate(SEEN)
    wide = page.viewport_size["width"]
    assert page.failed == []
    assert {unquote(url.rsplit("/", 1)[1]) for url in page.asked if url.startswith("file:")} == {
        build.page_name(notebook),
        "style.css",
    }
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
    assert seen["width"] <= wide, "the page scrolls sideways"
    assert all(there > 0 and shown <= wide and alt > 20 for there, shown, alt in seen["pictures"])
    assert all(width > 2 and height > 5 for width, height in seen["formulas"])
    assert seen["missing"] == []


def test_formulas_are_drawn_in_their_own_font(page, site):
    page.goto((site / build.page_name(LESSONS[3])).as_uri())
    assert page.evaluate("() => document.fonts.check('16px \"Lesson Math\"')")
    drawn = page.locator("math[display=block]").filter(has_text="round").or_(page.locator("mfrac")).first
    assert drawn.bounding_box()["height"] > 25  # a fraction stands over its line


def test_a_reader_goes_from_the_start_page_through_a_lesson(page, site):
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="Quantize and De-quantize a Tensor").click()
    assert page.locator("h1").inner_text().startswith("3. Quantize and De-quantize a Tensor")
    answer = page.locator("#Quiz ~ details").first
    assert answer.get_attribute("open") is None
    answer.locator("summary").click()
    assert answer.get_attribute("open") is not None
    assert "Right" in answer.inner_text() or "Not quite" in answer.inner_text()
    hint = page.locator(".help").first.locator("details").first
    hint.locator("summary").press("Enter")  # from the keyboard
    assert hint.locator("p").is_visible()
    page.get_by_role("link", name="4. Get the Scale and Zero Point").click()
    page.get_by_role("link", name="Glossary").first.click()
    assert page.locator("h1").inner_text().startswith("Glossary")
