"""One JupyterLab and one browser for all tests of this folder; a picture of the page where a test fails."""

import os
import re

import pytest
from playwright.sync_api import Error, sync_playwright

from scripts.browser import Lab, LessonPage, new_context, start_browser
from tests.lessons import ROOT, git

SCREENSHOTS = ROOT / "tests" / "browser" / "screenshots"  # git-ignored
NOT_HERE = re.compile(r"^(https?|wss?)://(?!localhost[:/]|127\.0\.0\.1[:/])")


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        try:
            browser = start_browser(playwright)
        except Error:
            pytest.skip("no browser: install Chromium or Chrome (Debian and Ubuntu: apt install chromium)")
        yield browser
        browser.close()


class GuardedLab(Lab):
    """One whose server and kernels reach no other machine, and write down what they tried to reach."""

    def environment(self, folder):
        self.reached = folder / "reached.txt"
        guard = os.pathsep.join([str(self.course / "tests" / "browser" / "guard"), str(self.course)])
        return super().environment(folder) | {"PYTHONPATH": guard, "QLIB_REACHED": str(self.reached)}

    def reached_hosts(self):
        """A set, which begins anew."""
        hosts = set(self.reached.read_text().split()) if self.reached.exists() else set()
        self.reached.unlink(missing_ok=True)
        return hosts


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab as `make lab` starts it, in a fresh copy of the course; not where `browser` skips the test."""
    if git("rev-parse", "HEAD") is None:
        pytest.skip("not a git checkout: what a clone would have cannot be told from what was left here")
    lab = GuardedLab(tmp_path_factory.mktemp("lab"))
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def open_lesson(browser, lab, request):
    """Opens notebooks by name; no request of theirs may leave the machine, the server's and the kernels' included."""
    context = new_context(browser)
    context.set_default_timeout(30_000)
    left = []

    def refuse(route):
        left.append(route.request.url)
        route.abort()

    context.route(NOT_HERE, refuse)
    opened = []

    def open_one(notebook, tell=None):
        opened.append(LessonPage(context, lab, notebook))
        if tell:
            opened[-1].page.on("request", lambda asked: tell(asked.url))
        return opened[-1].open()

    yield open_one
    if getattr(request.node, "failed", False):
        for page in opened:
            SCREENSHOTS.mkdir(exist_ok=True)
            picture = SCREENSHOTS / f"{re.sub(r'[^0-9A-Za-z_]+', '-', request.node.name).strip('-')}.png"
            page.page.screenshot(path=picture)
            print(f"the page as it was: {picture.relative_to(ROOT)}")
        print(f"the end of what make lab said:\n{lab.log.read_text()[-2000:]}")
    for page in opened:
        page.close()
    context.close()
    assert not left, f"the page reached for the network: {left}"
    reached = lab.reached_hosts()
    assert not reached, f"the server or a kernel reached for the network: {reached}"


def pytest_terminal_summary(terminalreporter):
    """How fast the widgets followed, which is told and not judged: it depends on what else the machine does."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for what, times in report.user_properties:
                terminalreporter.write_line(f"{what}, milliseconds: {times}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.failed = report.failed
    return report
