"""Progress bars hand on what they are given, are silent under test, and leave nothing in a notebook."""

import nbclient
import nbformat

from qlib.console import progress_bar


def test_a_progress_bar_hands_on_everything_and_is_silent_under_test_and_when_it_is_quick(monkeypatch, capsys):
    for strict in ("1", "0"):
        monkeypatch.setenv("QLIB_STRICT", strict)
        assert list(progress_bar([3, 1, 2], "counting")) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_progress_bar_leaves_nothing_in_a_saved_notebook(monkeypatch):
    monkeypatch.setenv("QLIB_STRICT", "0")
    source = "import time\nfrom qlib.console import progress_bar\n"
    source += "for _ in progress_bar(range(25), 'work'): time.sleep(0.1)\nprint('done')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    shown = []
    client = nbclient.NotebookClient(notebook, on_cell_executed=None, kernel_name="python3")
    output = client.output
    monkeypatch.setattr(
        client, "output", lambda outs, msg, *rest: (shown.append(msg["content"]), output(outs, msg, *rest))
    )
    client.execute()
    assert any("work" in str(content.get("data")) for content in shown)
    left = [output for output in notebook.cells[0].outputs if output.get("data") != {}]
    assert [output.text for output in left] == ["done\n"]
