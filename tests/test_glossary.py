"""The glossary: each term in both languages, with a way to the lessons that use it, and each lesson with one to it."""

import collections
import functools
import itertools
import re

import pytest

from tests.lessons import LESSONS, anchor, committed, headings_of

GLOSSARY = "glossary.ipynb"
CHINESE = re.compile("[一-鿿]")
# Many Chinese words are sorted by their sound in GB 18030; these two are said otherwise here: jiào, chóng.
BY_SOUND = str.maketrans({"校": "叫", "重": "崇"})

Entry = collections.namedtuple("Entry", "term names english chinese links")

each_lesson = pytest.mark.parametrize("lesson", LESSONS)


def entries():
    """The glossary's entries in order; each is five paragraphs, of which `names` and `links` are one line each."""
    cells = [cell.source for cell in committed(GLOSSARY).cells if cell.source.startswith("### ")]
    return [Entry(*cell[4:].split("\n\n")) for cell in cells]


def chinese_name(entry):
    return re.match(r"\*\*(.+?)\*\*", entry.names).group(1)


def index(heading):
    """The words that an index lists, with their anchors: [(word, anchor), …]; the letters in bold are left out."""
    cell = next(cell.source for cell in committed(GLOSSARY).cells if cell.source.startswith(f"## {heading}\n"))
    return re.findall(r"(?<!\*)\[(.+?)\]\(#(\S+?)\)(?= ·|\n|$)", cell)


def words_for(entry):
    """The ways to say a term, each a list of words that all have to occur: its heading, and its other names."""
    heading = re.sub(r" \(.+\)", "", entry.term)
    return [heading.split(" and "), *([name] for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", entry.names))]


def uses(text, word):
    """Whether a text has a word in some form (scale, scales, scaled), with a space or a hyphen between its parts."""
    parts = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]", word))
    return re.search(rf"(?<![A-Za-z]){parts}(s|es|d|ed|ing)?(?![A-Za-z])", text, re.I)


@functools.cache
def text_of(lesson):
    return "\n".join(cell.source for cell in committed(lesson).cells)


def test_every_entry_is_in_both_languages():
    for entry in entries():
        assert re.fullmatch(r"\*\*.+?\*\*( \(also .+\))?", entry.names), entry.term
        # Some names stay as they are in Chinese: GPTQ, W8A8.
        assert CHINESE.search(entry.names) or chinese_name(entry) == entry.term, entry.term
        assert len(entry.english) > 25 and not CHINESE.search(entry.english), entry.term
        assert len(CHINESE.findall(entry.chinese)) > 8, entry.term


def test_every_link_of_an_entry_leads_to_a_lesson_that_uses_the_term():
    for entry in entries():
        linked = re.findall(r"\[Lesson (\d+)(?:: [^]]+)?\]\((\S+?\.ipynb)", entry.links)
        assert linked and len(linked) == entry.links.count("]("), entry.term
        for number, lesson in linked:
            assert lesson in LESSONS and int(number) == int(lesson[:2]), f"{entry.term}: {lesson}"
            text = text_of(lesson)
            ways = words_for(entry)
            assert any(all(uses(text, word) for word in way) for way in ways), f"{entry.term} is not in {lesson}"


def test_a_link_to_a_section_names_it():
    for entry in entries():
        for name, section in re.findall(r"\[Lesson \d+: ([^]]+)\]\([^#]+#(.+?)\)(?= ·|$)", entry.links):
            assert anchor(name) == section, entry.term


def test_the_terms_are_sorted_under_their_letters():
    headings = [(marks, name) for marks, name in headings_of(committed(GLOSSARY)) if marks != "#"][2:]
    terms = [name for marks, name in headings if marks == "###"]
    assert terms == [entry.term for entry in entries()]
    assert terms == sorted(terms, key=str.casefold)
    letters = [(name[0].upper(), name) if marks == "###" else (name, name) for marks, name in headings]
    by_letter = [[name for _, name in group] for _, group in itertools.groupby(letters, key=lambda pair: pair[0])]
    assert all(len(group) > 1 and len(group[0]) == 1 and len(group[1]) > 1 for group in by_letter)


def test_both_indexes_list_every_term_once_and_sorted():
    assert index("Index") == [(entry.term, anchor(entry.term)) for entry in entries()]
    in_chinese = [(chinese_name(entry).split("（")[0], anchor(entry.term)) for entry in entries()]
    assert index("索引") == sorted(in_chinese, key=lambda pair: pair[0].translate(BY_SOUND).encode("gb18030"))


def test_the_chinese_index_has_a_line_for_each_letter_that_a_sound_begins_with():
    cell = next(cell.source for cell in committed(GLOSSARY).cells if cell.source.startswith("## 索引\n"))
    letters = [re.match(r"\*\*(A–Z|[A-Z])\*\* \[", line).group(1) for line in cell.split("\n\n")[1:]]
    assert letters[0] == "A–Z" and letters[1:] == sorted(set(letters[1:]))


def test_no_two_terms_have_one_name_in_chinese():
    names = [chinese_name(entry).split("（")[0] for entry in entries()]
    assert len(set(names)) == len(names)


def test_no_heading_of_a_lesson_is_taken_for_a_term():
    """With both open, JupyterLab goes to the first heading of that name on the whole page."""
    terms = {anchor(entry.term) for entry in entries()}
    for lesson in LESSONS:
        assert not terms & {anchor(name) for _, name in headings_of(committed(lesson))}, lesson


@each_lesson
def test_the_first_cell_of_a_lesson_links_the_glossary(lesson):
    first = committed(lesson).cells[0].source.split("\n\n")
    assert first[-2].startswith("**Time:** about")
    assert first[-1] == f"**Words:** [glossary · 术语表]({GLOSSARY})."
