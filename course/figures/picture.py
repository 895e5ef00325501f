"""Captions from what is drawn: the words and numbers of a finished picture, read back from its axes."""


def words_of(axis):
    """All words on an axis, in the order in which they were put there."""
    return [text.get_text() for text in axis.texts]


def rows_of_words(axis):
    """The words that stand in rows, such as the numbers of a matrix: a list for each row from the top, left to right.

    Rows are told from each other if they lie a tenth of a unit apart; the axis counts downwards.
    """
    rows = {}
    for text in axis.texts:
        x, y = text.get_position()
        rows.setdefault(round(y, 1), []).append((x, text.get_text()))
    return [[words for _, words in sorted(row)] for _, row in sorted(rows.items())]


def row_labels(axis):
    """What stands beside the bars of an axis, each on one line."""
    return [" ".join(label.get_text().split()) for label in axis.get_yticklabels()]


def lengths_of(axis):
    """The lengths of an axis' horizontal bars, in the order in which they were drawn."""
    return [bar.get_width() for bar in axis.patches]


def heights_of(axis):
    """The heights of an axis' upright bars, in the order in which they were drawn."""
    return [bar.get_height() for bar in axis.patches]
