"""Messages on the page: a compact card, readable in JupyterLab's light and dark themes, and the same words as text."""

import html
import re

from qlib.console import in_notebook

# The colour is an edge and a mark; the words keep the theme's own colour, so they can be read on any background.
COLOURS = {"✓": "#2e9d4f", "✗": "#d9432f", "○": "#8a8f98", "→": "#3b82d0"}


class Card:
    """A message with a mark (✓ correct, ✗ incorrect, ○ not attempted, → a hint) and a title."""

    def __init__(self, mark, title, message):
        self.mark, self.title, self.message = mark, title, message

    def __repr__(self):
        return f"{self.mark} {self.title}" + (f"\n{self.message}" if self.message else "")

    def _repr_html_(self):
        colour = COLOURS[self.mark]
        style = f"border-left: 4px solid {colour}; padding: 4px 12px; max-width: 52em; line-height: 1.5;"
        title = f'<span style="color: {colour}; font-weight: bold;">{self.mark}</span> <b>{html.escape(self.title)}</b>'
        return f'<div class="qlib-card" style="{style}">{title}<div>{as_html(self.message)}</div></div>'


def as_html(message):
    """A message's words, its lines and its `code`, as HTML."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(message)).replace("\n", "<br>")


def show_card(mark, title, message):
    """Put a card on the page; outside a notebook, print its words."""
    put_on_page(Card(mark, title, message))


def show_picture(picture):
    """Put a qlib.plot.Picture on the page; outside a notebook, print its caption."""
    put_on_page(picture)


def put_on_page(shown):
    if in_notebook():
        from IPython.display import display

        display(shown)
    else:
        print(shown)
