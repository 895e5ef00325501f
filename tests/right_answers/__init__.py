"""Right answers that are written differently from the library's, lesson by lesson. Every check must accept them."""

import importlib
import pkgutil

# {exercise id: [functions, classes or values]}
RIGHT_ANSWERS = {}
for module in pkgutil.iter_modules(__path__):
    RIGHT_ANSWERS |= importlib.import_module(f"{__name__}.{module.name}").ANSWERS
