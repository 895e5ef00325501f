"""Where the course's data lies, and how models are loaded without noise."""

import contextlib
import pathlib

import transformers

DATA = pathlib.Path(__file__).parent.parent.parent / "data"


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
