"""Exercises of lesson 14: weights packing."""

import torch

from course.exercises.exercise import Case, Exercise
from course.exercises.mistakes import Mistake, edit
from qlib.packing import get_field, put_field

BYTES = torch.tensor([177, 255, 0, 90], dtype=torch.uint8)
# The highest bit of the first word is 1: as an int32 it is negative.
WORDS = torch.tensor([[-0x7654_3210, 0x0123_4567], [-1, 0x7FFF_FFFF]], dtype=torch.int32)


# ---------------------------------------------------------------- 14.1 get_field

FIELD, MASK = "(word >> offset) & (2**bits - 1)", "(2**bits - 1)"


def how_read(args, index):
    word, offset, bits = args
    word = word[index].item()
    width = 8 if args[0].dtype is torch.uint8 else 32
    return f"out of the bits {word & (2**width - 1):0{width}b}"


GET_FIELD = Exercise(
    id="14.1",
    name="get_field",
    key=get_field,
    cases=[
        # First the one on which no two mistakes give the same.
        Case("the byte 177, which is 10110001, offset 2 and 5 bits", (177, 2, 5)),
        Case("the byte 177, which is 10110001, offset 4 and 2 bits", (177, 4, 2)),
        Case("the byte 177, offset 0 and 8 bits", (177, 0, 8)),
        Case("a tensor of four bytes, offset 6 and 2 bits", (BYTES, 6, 2)),
        Case("a tensor of four bytes, offset 1 and 3 bits", (BYTES, 1, 3)),
        Case("a tensor of 32-bit words, offset 28 and 4 bits", (WORDS, 28, 4)),
        Case("a tensor of 32-bit words, offset 9 and 7 bits", (WORDS, 9, 7)),
    ],
    mistakes=[
        Mistake(edit(f" & {MASK}", ""), "with no mask after the shift: the bits above the field come along"),
        Mistake(edit(" >> offset", ""), "with no shift: these are the lowest bits of the word, whatever the offset"),
        Mistake(edit(FIELD, f"word & ({MASK} << offset)"), "when the field is masked but not shifted down to bit 0"),
        Mistake(edit(FIELD, f"(word & {MASK}) >> offset"), "with the mask before the shift; the field is not there then"),
        Mistake(edit(">>", "<<"), "with << in place of >>; the field has to come down to bit 0"),
        Mistake(edit(MASK, "2**bits"), "with the mask 2**bits, which is a single 1; the ones below it are 2**bits - 1"),
        Mistake(edit("2**bits", "1 << bits"), "with 1 << bits - 1: the - comes before the <<; write (1 << bits) - 1"),
        Mistake(edit("2**bits", "(2 ^ bits)"), "with 2^bits, which is xor in Python; a power is 2**bits"),
        Mistake(edit(MASK, "3"), "with the mask 3, whatever `bits` says"),
        Mistake(edit("& (", "% ("), "with a remainder by 2**bits - 1; it is & (2**bits - 1), or % 2**bits"),
        Mistake(edit(FIELD, f"(word & ({MASK} << offset)) >> offset"), "with the mask before the shift alone: in a negative int32 the shift then brings ones in from the left"),
        Mistake(edit(FIELD, "word % 2 ** (offset + bits) // 2**offset"), "with a remainder by 2**(offset + bits): at the top of a byte that is 256, which a uint8 cannot hold; divide first"),
        Mistake(edit("return (word >> offset)", "word >>= offset; return word"), "with >>= or &= in place on a tensor"),
        Mistake(edit(MASK, "bits"), "with the number of bits as the mask; 3 bits have the mask 0b111"),
        Mistake(edit(">> offset", ">> offset * bits"), "with offset * bits; the offset counts bits, not fields"),
        Mistake(edit(">> offset", ">> offset - 1"), "with the bits counted from 1; the lowest is bit 0"),
        Mistake(edit(">> offset", ">> bits", "2**bits", "2**offset"), "with offset and bits swapped"),
        Mistake(edit(">> offset", ">> 8 - offset - bits"), "with the offset counted from the top of a byte"),
        Mistake(edit("& (", "| ("), "with | and the mask, which sets bits to 1; & keeps them as they are"),
        Mistake(edit(">> offset", "// offset"), "with a division by the offset; >> offset divides by 2**offset"),
        Mistake(edit(FIELD, "word / 2**offset % 2**bits"), "with /, which keeps the bits below as a fraction; use //"),
        Mistake(edit(FIELD, "((word << (8 - offset - bits)) & 255) >> (8 - bits)"), "with the upper bits pushed off the end of a byte; a word may be longer than 8 bits, so mask"),
        Mistake(edit(">> offset", "// 2 * offset"), "with // 2 * offset; >> offset divides by 2**offset"),
        Mistake(edit(f"& {MASK}", "% bits"), "with a remainder by `bits`; it is % 2**bits"),
        Mistake(edit("2**bits", "2**offset"), "with a mask of `offset` ones; the field has `bits`"),
        Mistake(edit("(word >", "(int(word) >"), "with int(), which takes a single number; word may be a tensor"),
        Mistake(edit(FIELD, 'int(f"{word:032b}"[32 - offset - bits : 32 - offset], 2)'), "with the digits as text, which a tensor does not have; use >> and &"),
        Mistake(edit(FIELD, "int(bin(word)[2:].zfill(32)[32 - offset - bits : 32 - offset], 2)"), "with bin(), which takes a single number; word may be a tensor, so use >> and &"),
    ],
    hints=[
        "Two steps: bring the field down to the bottom, then take away what stands above it.",
        "A shift to the right by `offset` brings it down. A mask of `bits` ones, and nothing else, keeps it alone.",
        "The number with n ones at the bottom is one less than 2**n. `&` with it keeps the n lowest bits.",
    ],
    explain=how_read,
)


# ---------------------------------------------------------------- 14.2 put_field


def how_written(args, index):
    word = args[0][index].item()
    value = args[1][index].item() if isinstance(args[1], torch.Tensor) else args[1]
    width = 8 if args[0].dtype is torch.uint8 else 32
    return f"the value {value} into the bits {word & (2**width - 1):0{width}b}"


PUT_FIELD = Exercise(
    id="14.2",
    name="put_field",
    key=put_field,
    cases=[
        Case("the byte 177, which is 10110001, the value 5, offset 3 and 3 bits", (177, 5, 3, 3)),
        Case("the byte 177, which is 10110001, the value 2, offset 4 and 2 bits", (177, 2, 4, 2)),
        Case("the byte 0, the value 5, offset 3 and 3 bits", (0, 5, 3, 3)),
        Case("the byte 255, the value 0, offset 2 and 4 bits", (255, 0, 2, 4)),
        Case("the byte 177, the value 6, which has a bit too many, offset 0 and 2 bits", (177, 6, 0, 2)),
        Case("a tensor of four bytes, the value 1, offset 5 and 3 bits", (BYTES, 1, 5, 3)),
        Case("four bytes and values, offset 6 and 2 bits", (BYTES, torch.tensor([0, 5, 2, 7], dtype=torch.uint8), 6, 2)),
        Case("a tensor of 32-bit words, the value 6, offset 20 and 4 bits", (WORDS, 6, 20, 4)),
    ],
    mistakes=[
        Mistake(edit("(word & ~mask)", "word"), "with | alone: ones that were in the field stay there; clear it first"),
        Mistake(edit("(word & ~mask) |", "word +"), "with + and the field not cleared: what was in it is added to"),
        Mistake(edit("(word & ~mask) |", "word ^"), "with ^: a 1 of the value turns a 1 there to 0; clear it first"),
        Mistake(edit(" & mask)", ")"), "when the value is not masked: its upper bits spill into the next field"),
        Mistake(edit("(value << offset) & mask", "min(value, 2**bits - 1) << offset"), "with a clamp; a value that is too wide keeps its lowest bits"),
        Mistake(edit("word & ~mask", "word & 0"), "when the rest of the word is lost; only the field may change"),
        Mistake(edit("~mask", "mask"), "with the mask the wrong way round: & ~mask clears the field, & mask the rest"),
        Mistake(edit("~mask", f"~{MASK}"), "when the mask that clears is not shifted to the field"),
        Mistake(edit("(value << offset) & mask", f"value & {MASK}"), "when the value is not shifted to the field"),
        Mistake(edit("value << offset", "value << bits"), "when the value is shifted by `bits`, not by `offset`"),
        Mistake(edit(" | ((value << offset) & mask)", ""), "when the field is cleared and the value never put in"),
        Mistake(edit("mask =", "offset *= bits; mask ="), "with offset * bits; the offset counts bits, not fields"),
        Mistake(edit("mask =", "offset = 8 - offset - bits; mask ="), "with the offset counted from the top of a byte"),
        Mistake(edit(MASK, "2**bits"), "with the mask 2**bits, which is a single 1; the ones below it are 2**bits - 1"),
        Mistake(edit("2**bits", "1 << bits"), "with 1 << bits - 1: the - comes before the <<; write (1 << bits) - 1"),
        Mistake(edit("2**bits", "(2 ^ bits)"), "with 2^bits, which is xor in Python; a power is 2**bits"),
        Mistake(edit(MASK, "3"), "with the mask 3, whatever `bits` says"),
        Mistake(edit("~mask", "~mask & 255"), "with a mask of 8 bits for the rest, which cuts longer words off"),
        Mistake(edit("~mask", "(255 - mask)"), "with 255 - mask, which fits a byte alone; ~mask fits any word"),
        Mistake(edit("~mask", "(255 ^ mask)"), "with 255 ^ mask, which fits a byte alone; ~mask fits any word"),
        Mistake(edit("~mask", "-mask"), "with -mask in place of ~mask: they differ by one"),
        Mistake(edit("~mask", f"(~{MASK} << offset)"), "with ~ before the shift: zeros that come in below clear too much"),
        Mistake(edit("(word & ~mask) |", "word & ~mask +"), "with a + that Python does before the &: it needs brackets"),
        Mistake(edit("return (word & ~mask)", "word &= ~mask; return word"), "with &= or |= in place on a tensor"),
        Mistake(edit("return", f"value &= {MASK}; return"), "with &= on the value, which changes the caller's tensor"),
        Mistake(edit("word & ~mask", "word ^ mask"), "with ^ mask, which turns zeros to ones as well; & ~mask clears"),
        Mistake(edit("(word & ~mask) |", "word - mask +"), "with word - mask, which clears the field if it is all ones alone"),
        Mistake(edit("value <<", "value % bits <<"), "with value % bits; its lowest bits are value % 2**bits"),
        Mistake(edit(") | (", ") & ("), "with & to put the value in; nothing is left of either, so use |"),
    ],
    hints=[
        "Make a hole where the field is, then drop the value into it.",
        "Shift the mask of `bits` ones up to the field. & with its opposite makes the hole; | puts the value in.",
        "`~mask` has zeros in the field and ones everywhere else. Shift the value up as well, and & it with the mask, so that nothing of it lies beside the hole.",
    ],
    explain=how_written,
)

EXERCISES = [GET_FIELD, PUT_FIELD]
