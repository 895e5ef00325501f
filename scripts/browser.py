"""JupyterLab as a learner has it, for the screenshots and the browser tests: `make lab` in a fresh copy of the course,
and its pages in a browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import TimeoutError

from scripts.notebooks import WIDGET

ROOT = Path(__file__).parents[1]
JAVASCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
THEMES, WIDTHS = ("dark", "light"), (1280, 800)  # in which a lesson is looked at
# What would tie the server to this machine's own settings, or to what `make` gives to its tests.
LEFT_OUT = re.compile(r"(JUPYTER|IPYTHON|QLIB|MAKE|MFLAGS|PYTEST|PYTHON|HF_|TRANSFORMERS_|BROWSER|DISPLAY)")


def fresh_copy(folder):
    """The course's files as a clone would have them, which git knows, and this checkout's .venv, in `folder`."""
    ask = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(ask, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a file may have been deleted and not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv", target_is_directory=True)


def start_browser(playwright):
    """The Chromium or Chrome of this machine, without a window; playwright's Error where there is none."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    where = {"executable_path": found} if found else {"channel": "chrome"}
    # A container's root may not use Chromium's sandbox; it opens nothing but our own pages.
    return playwright.chromium.launch(args=["--no-sandbox"], **where)


def new_context(browser):
    """What the pages of one learner share, with browser.js in each of them."""
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, reduced_motion="reduce")
    context.add_init_script(JAVASCRIPT)
    return context


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A running `make lab`; all that it would keep for a learner is kept in `folder`."""

    TOKEN = "browser-test"

    def __init__(self, folder):
        self.course = folder / "course"
        self.log = folder / "lab.log"
        fresh_copy(self.course)
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rsplit(":", 1)[1]
        arguments = f"--no-browser --port {port} --ServerApp.ip=127.0.0.1 --IdentityProvider.token={self.TOKEN}"
        arguments += " --LabApp.expose_app_in_browser=True"  # as window.jupyterapp, for browser.js
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments += " --allow-root"  # as in a container
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["make", "lab", f"ARGS={arguments}"],
                cwd=self.course,
                env=self.environment(folder),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self, folder):
        kept = {name: value for name, value in os.environ.items() if not LEFT_OUT.match(name)}
        own = {
            name: str(folder / name.lower())
            for name in (
                *("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"),
                *("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "QLIB_PROGRESS_FILE"),
            )
        }
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        return kept | own | threads | {"PYTHONPATH": str(self.course)}

    def wait(self, seconds=60):
        """Until it answers."""
        for _ in range(10 * seconds):
            try:
                return urllib.request.urlopen(f"{self.url}/api?token={self.TOKEN}")
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"make lab did not start:\n{self.log.read_text()}")

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(20)

    def address(self, notebook):
        """Of a notebook, in a workspace of its own."""
        return f"{self.url}/lab/workspaces/{notebook[:2]}/tree/{notebook}?reset&token={self.TOKEN}"

    def stored(self, notebook):
        """A notebook as it is on the learner's disk."""
        return nbformat.read(self.course / "notebooks" / notebook, as_version=4)


class LessonPage:
    """One notebook, open in JupyterLab in a page of the browser."""

    def __init__(self, context, lab, notebook):
        self.page, self.lab, self.notebook = context.new_page(), lab, notebook

    def open(self):
        self.page.goto(self.lab.address(self.notebook), wait_until="commit")
        try:
            self.wait_for("ready", seconds=90)
        except TimeoutError:  # JupyterLab may miss that its kernel has started; one would load the page again
            self.page.reload(wait_until="commit")
            self.wait_for("ready", seconds=90)
        return self

    def call(self, function, *arguments):
        """What a function of browser.js returns."""
        return self.page.evaluate(f"args => qlib.{function}(...args)", list(arguments))

    def wait_for(self, function, *arguments, seconds=30):
        """Until a function of browser.js says yes."""
        script = f"args => window.jupyterapp && qlib.{function}(...args)"
        self.page.wait_for_function(script, arg=list(arguments), timeout=1000 * seconds)

    def run_all(self, command="runmenu:run-all"):
        """Run All, to the end or to the first cell that fails."""
        self.call("start", command)
        if "restart" in command:
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_for("finished", seconds=400)

    def cells(self):
        """The cells as they are now, in the form of the file; what is left of progress bars is left out."""
        cells = self.call("cells")
        for cell in cells:
            if "outputs" in cell:
                cell["outputs"] = [output for output in cell["outputs"] if not is_progress(output)]
        return cells

    def theme(self, name):
        """One of THEMES."""
        self.call("theme", f"JupyterLab {name.title()}")
        self.wait_for("themed", name == "light")

    def resize(self, width):
        """A window of that many pixels, the file browser closed, as one would in a small one."""
        self.call("collapseLeft")
        self.page.set_viewport_size({"width": width, "height": 900})
        self.call("settled")

    def close(self):
        """Shut the kernel down, which may hold a model."""
        self.call("shutDown")
        self.page.close()


def is_progress(output):
    """Whether an output is what a progress bar leaves: ours no data, another's an empty widget."""
    data = output.get("data", {})
    widget = WIDGET in data and re.search(r"\d%\|", "".join(data.get("text/plain", ""))) is not None
    return widget or output.get("data") == {}
