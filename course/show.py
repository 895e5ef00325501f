"""How lessons show numbers: rounded, so that another CPU's last digit changes nothing."""

import os

from qlib.console import in_notebook, progress_bar
from qlib.report import Table, as_text


def show(*values, digits=4, **named):
    """Print values, rounded to `digits` decimals at most; named ones one a line behind their name."""
    if values:
        texts = [as_text(value, digits) for value in values]
        print(*texts, sep="\n\n" if any("\n" in text for text in texts) else " ")
    width = max((len(name) for name in named), default=0)
    for name, value in named.items():
        text = as_text(value, digits)
        print(f"{name.ljust(width)} =" + (f"\n{text}" if "\n" in text else f" {text}"))


def table(rows, digits=4):
    """A Table of `rows`, a list of {column: value}; what is missing in a row stays empty."""
    return Table(rows, digits)


def track(iterable, label):
    """A `progress_bar` for a cell of a lesson. It takes with it what the cell had printed before.

    So a lesson that is saved after a run looks like one that ran under test.
    """
    yield from progress_bar(iterable, label)
    if in_notebook() and os.environ.get("QLIB_STRICT") != "1":
        from IPython.display import clear_output

        clear_output()
