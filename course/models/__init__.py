"""The lessons' real models and data, one loader each. Everything is on disk already; nothing reaches for a network."""

from course.models.code import complete, load_code_model, load_code_tokens, perplexity
from course.models.detector import Boxes, average_precision, detect, load_detector, load_pictures
from course.models.digits import (
    accuracy,
    digits_conv_net,
    load_digits,
    load_digits_conv,
    load_digits_qat,
    load_small_net,
    small_net,
)
from course.models.encoder import embed, encoder_folder, load_encoder, load_sentences
from course.models.loading import DATA, quiet_loading

__all__ = [
    "DATA",
    "Boxes",
    "accuracy",
    "average_precision",
    "complete",
    "detect",
    "digits_conv_net",
    "embed",
    "encoder_folder",
    "load_code_model",
    "load_code_tokens",
    "load_detector",
    "load_digits",
    "load_digits_conv",
    "load_digits_qat",
    "load_encoder",
    "load_pictures",
    "load_sentences",
    "load_small_net",
    "perplexity",
    "quiet_loading",
    "small_net",
]
