"""JupyterLab as `make lab` starts it."""

from tests.lessons import OTHER_NOTEBOOKS


def test_lab_neither_fetches_news_nor_asks_whether_it_may(open_lesson):
    asked = []
    page = open_lesson(OTHER_NOTEBOOKS[0], asked.append).page
    page.wait_for_timeout(2000)  # it would ask a little after the start
    assert [url for url in asked if "/api/news" in url or "/api/update" in url] == []
    assert page.get_by_text("official Jupyter news").count() == 0
    assert not page.evaluate("() => jupyterapp.hasPlugin('@jupyterlab/apputils-extension:announcements')")
