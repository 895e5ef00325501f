"""Words for someone who waits: progress bars and one-line notices, in a notebook and a terminal; silent under test."""

import contextlib
import os
import sys
import threading

import tqdm


def progress_bar(iterable, label):
    """Iterate with a progress bar that comes up after two seconds and leaves at the end; silent under test."""
    quiet = os.environ.get("QLIB_STRICT") == "1"
    where = {"file": CellLine(), "ncols": 80} if in_notebook() and not quiet else {}
    return tqdm.tqdm(iterable, desc=label, delay=2, leave=False, disable=quiet, **where)


class CellLine:
    """A line of a notebook cell for a progress bar to write on, which leaves nothing in the notebook that is saved.

    A widget would: its cell would differ from the stored one, and a test of the learner's notebook would fail.
    """

    handle = None

    def write(self, text):
        shown = text.strip()  # of the "\r" in front, and of the spaces that wipe a line
        if self.handle is None and not shown:
            return
        if self.handle is None:
            from IPython.display import DisplayHandle

            self.handle = DisplayHandle()
            self.handle.display({"text/plain": shown}, raw=True)
        self.handle.update({"text/plain": shown} if shown else {}, raw=True)

    def flush(self):
        """A file has this; there is nothing to wait for."""


def in_notebook():
    """Whether a notebook (or an IPython shell) is running this code."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


@contextlib.contextmanager
def word_after(seconds, text):
    """Show the text if what is inside takes longer, in a notebook only until it is done; silent under test."""
    line = CellLine() if in_notebook() else sys.stderr
    timer = threading.Timer(seconds, line.write, [f"{text}\n"])
    timer.daemon = True
    if os.environ.get("QLIB_STRICT") != "1":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if line is not sys.stderr:
            line.write("")
