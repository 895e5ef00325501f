"""What the browser tests ask of a notebook's cells and its explorers."""

from playwright.sync_api import TimeoutError

from scripts.notebooks import WIDGET, tidy_outputs


def kinds(outputs):
    """What each output of a cell is made of, in the stored form: streams merged, without a widget's model."""
    tidy = tidy_outputs([joined(output) for output in outputs], None)
    return [(output["output_type"], output.get("name"), sorted(output.get("data", ()))) for output in tidy]


def joined(output):
    """A stream's text may be a list of lines."""
    return output | {"text": "".join(output["text"])} if "text" in output else output


def outputs_with(kind, cells):
    """The outputs of a notebook's cells that have a representation of that kind."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [output for output in outputs if kind in output.get("data", ())]


def widgets_in(cells):
    return len(outputs_with(WIDGET, cells))


def still_figures(cells):
    """How many figures are shown; where there is a widget it takes the place of its picture."""
    return sum(WIDGET not in output["data"] for output in outputs_with("image/png", cells))


def controls_followed(lesson, explorer):
    """Move each control of an explorer by a key: {control: milliseconds to the first change of picture and words}."""
    followed = {}
    for number, kind in enumerate(lesson.call("controls", explorer)):
        for key in ["ArrowDown", "ArrowUp"] if kind in ("slider", "select-one") else ["Space"]:
            assert lesson.call("watch", explorer, number), "the control takes no focus"
            lesson.page.keyboard.press(key)
            try:
                lesson.wait_for("moved", seconds=5)
            except TimeoutError:
                continue  # it may stand at that end
            lesson.call("settled")
            break
        followed[f"{number + 1} {kind}"] = lesson.call("followed")
    return followed
