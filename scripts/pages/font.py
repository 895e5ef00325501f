"""Makes math.woff, the font of the formulas on the web pages, from Latin Modern Math's latinmodern-math.otf.

    python scripts/pages/font.py latinmodern-math.otf

Without a font that knows how to stretch a bracket, browsers draw MathML badly, and few systems bring one. Only the
signs that formulas are made of are kept, a tenth of the font.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

NAME = "Lesson Math"  # the licence asks that a changed font has another name
LETTERS = [*range(0x20, 0x7F), *range(0x391, 0x3CA), *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)]
ACCENTS = "\u00a0¬°±·×÷ˆ\u0302\u0303\u0304\u20d7ϑϕϵ"
MARKS = "‐‑–—‖†…′″‾\u2061\u2062\u2063ℎℏℂℕℝℤℓ"
ARROWS = "←↑→↓↔↕↦⇐⇒⇔⟵⟶⟸⟹⟺"
OPERATORS = "∀∂∃∅∆∇∈∉∏∑−∓∕∗∘∙√∝∞∣∥∧∨∩∪∫∼≅≈≠≡≤≥≪≫⊂⊆⊕⊗⊙⊤⊥⋅⋆⋮⋯⋱⩽⩾"
BRACKETS = "⌈⌉⌊⌋⎴⎵⏜⏝⏞⏟⟨⟩"


def main(source):
    options = subset.Options(layout_features=["ssty", "dtls", "kern"], hinting=False, notdef_outline=True)
    font = TTFont(source, recalcTimestamp=False)
    keep = subset.Subsetter(options)
    keep.populate(unicodes=LETTERS, text=ACCENTS + MARKS + ARROWS + OPERATORS + BRACKETS)
    keep.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6, 16):
            record.string = NAME.replace(" ", "" if record.nameID == 6 else " ")
    font["CFF "].cff.fontNames[0] = NAME.replace(" ", "")
    font.flavor = "woff"
    font.save(Path(__file__).parent / "math.woff")


if __name__ == "__main__":
    main(sys.argv[1])
