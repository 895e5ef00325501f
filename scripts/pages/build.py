"""Writes the lessons as web pages that need neither Jupyter nor a network: `make html` calls this.

A page shows a notebook as it is on disk, with its stored outputs. Formulas become MathML, which browsers draw by
themselves; pictures are inside the pages, and their captions are their alternative text.
"""

import base64
import html
import itertools
import re
import string
import sys
from pathlib import Path

import math_core
import nbformat
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from course.exercises.card import as_html
from course.exercises.exercise import all_exercises

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent.parent / "notebooks"
START = "00_start_here.ipynb"
PYTHON = get_lexer_by_name("ipython3")


# ---------------------------------------------------------------- links


def page_name(notebook):
    """The page of a notebook's file: the start page is the one that a browser opens in a folder."""
    return "index.html" if notebook == START else notebook.removesuffix(".ipynb") + ".html"


def page_link(url):
    """A link of a notebook as a link of its page, its anchor kept."""
    path, hash_sign, anchor = url.partition("#")
    return page_name(path) + hash_sign + anchor if path.endswith(".ipynb") and "://" not in path else url


def anchor_of(heading):
    """The anchor that JupyterLab gives to a heading, so that a link works in both."""
    return html.unescape(re.sub("<[^>]+>", "", heading)).strip().replace(" ", "-")


# ---------------------------------------------------------------- formulas

CONVERTER = math_core.LatexToMathML()


def mathml(formula, display):
    """A LaTeX formula as MathML; `display` says that it stands on a line of its own."""
    made = CONVERTER.convert_with_local_state(formula, displaystyle=display)
    # Words are names here. A browser takes <mtext> for space, and would set a plus close to it.
    return made.replace("<mtext>", '<mi mathvariant="normal">').replace("</mtext>", "</mi>")


# ---------------------------------------------------------------- cells


class Renderer(IPythonRenderer):
    """Markdown as JupyterLab reads it, for a page that stands alone."""

    def __init__(self):
        super().__init__(escape=False)
        self.sections = []  # (anchor, heading) of the second level

    def link(self, text, url, title=None):
        return super().link(text, page_link(url), title)

    def heading(self, text, level, **attributes):
        anchor = anchor_of(text)
        if level == 2:
            self.sections.append((anchor, text))
        mark = f'<a class="anchor" href="#{html.escape(anchor)}" aria-label="Link to this section">#</a>'
        return f'<h{level} id="{html.escape(anchor)}">{text}{mark}</h{level}>\n'

    def table(self, text):
        return f'<div class="wide"><table>{text}</table></div>\n'

    def inline_math(self, body):
        return mathml(body, display=False)

    def block_math(self, body):
        return mathml(body, display=True)


def markdown(source, renderer):
    return MarkdownWithMath(renderer=renderer).render(source)


def python(source):
    return highlight(source, PYTHON, HtmlFormatter(cssclass="code"))


def code_cell(cell, renderer):
    """A cell and its outputs, or the hints that a cell offers, folded."""
    asked = re.fullmatch(r'# hint\("(\d\d\.\d+)"\)\n# solution\("\1"\)', cell.source)
    if asked:
        return help_with(all_exercises()[asked[1]])
    shown = "".join(output_html(output, renderer) for output in cell.outputs)
    return python(cell.source) + (f'<div class="outputs">{shown}</div>\n' if shown else "")


def help_with(exercise):
    """What `hint` and `solution` show in a notebook that runs, each to be opened on its own."""
    count = len(exercise.hints)
    folded = [(f"Hint {n} of {count}", f"<p>{as_html(hint)}</p>") for n, hint in enumerate(exercise.hints, 1)]
    folded.append(("Solution", python(exercise.solution())))
    parts = "".join(f"<details><summary>{summary}</summary>{inside}</details>" for summary, inside in folded)
    return f'<div class="help">{parts}</div>\n'


def output_html(output, renderer):
    """The richest form of an output that a page can hold. Of a widget that is its picture, or its text."""
    if output.output_type == "error":
        return f"<pre>{html.escape(strip_ansi(chr(10).join(output.traceback)))}</pre>"
    if output.output_type == "stream":
        return f"<pre>{html.escape(strip_ansi(output.text))}</pre>"
    data = output.data
    if "image/png" in data:
        source = f"data:image/png;base64,{''.join(data['image/png'].split())}"
        return f'<img src="{source}" alt="{html.escape(data.get("text/plain", ""))}">'
    if "text/html" in data:
        return f'<div class="wide">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return markdown(data["text/markdown"], renderer)
    return f"<pre>{html.escape(data.get('text/plain', ''))}</pre>"


# ---------------------------------------------------------------- pages


def title_of(notebook):
    """The heading of the first level, as text: "3. Quantize and De-quantize a Tensor"."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.search(r"^# (.+)$", prose, re.M)[1]


def neighbour(word, arrow, notebook, titles):
    if notebook is None:
        return "<span></span>"
    return f'<a rel="{word}" href="{page_name(notebook)}">{arrow.format(html.escape(titles[notebook]))}</a>'


def page(notebook, before, after, titles):
    """The whole page of a notebook, given the files of the notebooks around it or None."""
    renderer = Renderer()
    cells = [
        markdown(cell.source, renderer) if cell.cell_type == "markdown" else code_cell(cell, renderer)
        for cell in notebook.cells
        if cell.source.strip()
    ]
    sections = "".join(f'<li><a href="#{html.escape(a)}">{text}</a></li>' for a, text in renderer.sections)
    template = string.Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title_of(notebook)),
        sections=sections,
        cells="\n".join(cells),
        before=neighbour("prev", "← {}", before, titles),
        after=neighbour("next", "{} →", after, titles),
        glossary='<a href="glossary.html">Glossary · 术语表</a>' if "glossary.ipynb" in titles else "",
    )


def style():
    """The style sheet, with the colours of code for a light and a dark screen, and the font of the formulas in it.

    (Some browsers do not let a page on disk load a font that lies beside it.)
    """
    light, dark = (HtmlFormatter(style=name).get_style_defs(".code") for name in ("default", "github-dark"))
    font = base64.b64encode((HERE / "math.woff").read_bytes()).decode()
    face = f'@font-face {{ font-family: "Lesson Math"; src: url("data:font/woff;base64,{font}"); }}'
    ours = (HERE / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{ours}\n{face}\n"


def build(folder, paths):
    """Write the pages of notebooks and their style sheet into a folder; what else is a page there goes.

    Args:
        folder: Path, made where it is missing.
        paths: Paths of the notebooks. Those whose names begin with a number follow one another in their order.
    """
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in paths}
    titles = {name: title_of(notebook) for name, notebook in notebooks.items()}
    numbered = sorted(name for name in notebooks if name[:2].isdigit())
    after = dict(itertools.pairwise(numbered))
    before = {name: earlier for earlier, name in after.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.html"):
        old.unlink()
    (folder / "style.css").write_text(style(), encoding="utf-8")
    for name, notebook in notebooks.items():
        text = page(notebook, before.get(name), after.get(name), titles)
        (folder / page_name(name)).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    build(Path(sys.argv[1]), found)
    print(f"{len(found)} pages. Open {sys.argv[1]}/index.html in a browser.")
