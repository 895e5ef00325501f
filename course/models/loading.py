"""Where the course's data lies, and how models are loaded without noise."""

import contextlib
import pathlib

import transformers


def find_data():
    """The checkout's folder `data`: beside the package `course`, or, where that is installed apart from the checkout,
    above the working folder, since a lesson runs in notebooks/."""
    beside, working = pathlib.Path(__file__).parents[2], pathlib.Path.cwd()
    for folder in (beside, working, *working.parents):
        if (folder / "data" / "sentences.txt").is_file():
            return folder / "data"
    return beside / "data"  # loading will name the file that is missing


DATA = find_data()


@contextlib.contextmanager
def quiet_loading():
    """A context in which transformers draws no progress bar and prints no notices."""
    verbosity, had_bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bar:
            transformers.logging.enable_progress_bar()
