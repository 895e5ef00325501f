"""Lessons show numbers rounded, in lines and in tables."""

import re

import torch

from course.show import show, table, track


def test_show_prints_values_side_by_side_and_named_ones_in_lines(capsys):
    show(1 / 3, [2.0, -0.0], digits=2)
    show(scale=3.57882, zero_point=-77, matrix=torch.eye(2))
    assert capsys.readouterr().out == (
        "0.33 [2, 0]\nscale      = 3.5788\nzero_point = -77\nmatrix     =\n[1  0]\n[0  1]\n"
    )


def test_a_table_has_a_row_for_each_entry_and_its_numbers_rounded():
    shown = table([{"bits": 8, "error": 1.23456789}, {"bits": 4, "error": torch.tensor(20.0)}], digits=2)
    assert [line.split() for line in repr(shown).splitlines()] == [["bits", "error"], ["8", "1.23"], ["4", "20"]]
    html = shown._repr_html_()
    assert html.count("<tr") == 3 and "<td>1.23</td>" in html


def test_what_a_row_lacks_stays_empty_and_long_words_stay_whole():
    words = "a sentence that is a good deal longer than the fifty characters after which pandas cuts"
    html = table([{"name": words}, {"name": "b", "error": 0.5}])._repr_html_()
    assert words in html
    assert html.count("<td></td>") == 1 and "nan" not in html.lower()


def test_a_tables_words_stand_on_the_left_and_its_numbers_on_the_right():
    rows = [
        {"layer": "a", "size": "4.1 kB", "error": torch.inf, "scheme": "8-bit, per row", "share": "3.0%"},
        {"layer": "b", "size": "512 bytes", "error": -1.5},
        {"layer": 7, "size": "exact", "error": 2},
    ]
    html = table(rows)._repr_html_()
    on_the_left = re.findall(r'<t[hd] style="text-align: left">([^<]*)<', html)
    assert on_the_left == ["layer", "scheme", "a", "8-bit, per row", "b", "", "7", ""]
    assert re.findall(r"<td>([^<]*)<", html) == [
        *("4.1&nbsp;kB", "inf", "3.0%"),
        *("512&nbsp;bytes", "-1.5", ""),
        *("exact", "2", ""),
    ]


def test_track_hands_on_everything(monkeypatch, capsys):
    monkeypatch.setenv("QLIB_STRICT", "1")
    assert list(track(iter("ab"), "spelling")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
