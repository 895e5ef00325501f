"""What to do with a tensor, in one small frozen object: how many bits, which mode, how fine a grid, which scales."""

import numbers
from dataclasses import asdict, dataclass

# Of the grids beside the integers: the bits of a code, the largest level, and what they are called; see grids.py.
GRID_BITS = {"nf4": 4, "e2m1": 4, "e4m3": 8}
LARGEST_LEVEL = {"nf4": 1.0, "e2m1": 6.0, "e4m3": 448.0}
GRID_NAMES = {"nf4": "NF4", "e2m1": "FP4 (e2m1)", "e4m3": "FP8 (e4m3)"}
# How scales are kept, and what that is called. SHARED_SCALES come with numbers of the whole tensor.
SCALE_NAMES = {
    "float32": "",
    "float16": "float16 scales",
    "bfloat16": "bfloat16 scales",
    "e8m0": "scales that are powers of two",
    "e4m3": "FP8 scales",
    "double": "double quantization",
}
SHARED_SCALES = ("e4m3", "double")


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized.

    Args:
        bits: width of a value, 2 to 8.
        symmetric: True puts the zero point at 0 and stretches the grid to the largest magnitude;
            False stretches it from the smallest to the largest value and finds the zero point.
        axis: what shares a scale. None: the whole tensor. 0: each output row. 1: each column.
        group_size: when given, each run of `group_size` values along the last dimension of a row has a
            scale of its own; the last group of a row may be shorter.
        grid: what a value is rounded to: "integer"; "nf4" or "e2m1" (FP4), of 4 bits; "e4m3" (FP8), of 8.
        scales: how a scale is kept: "float32", "float16", "bfloat16"; "e8m0", a power of two in 8 bits; "e4m3", FP8,
            with one float32 for the tensor; "double", int8 in blocks of 256, with float32 above.

    Raises:
        TypeError, ValueError: naming the argument that makes no sense, and what would.
    """

    bits: int = 8
    symmetric: bool = True
    axis: int | None = 0
    group_size: int | None = None
    grid: str = "integer"
    scales: str = "float32"

    def __post_init__(self):
        for argument in ("bits", "axis", "group_size"):
            object.__setattr__(self, argument, whole_number(getattr(self, argument)))
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be a whole number from 2 to 8, not {self.bits!r}")
        if type(self.symmetric) is not bool:
            raise TypeError(f"symmetric must be True or False, not {self.symmetric!r}")
        if self.axis is not None and (type(self.axis) is not int or self.axis not in (0, 1)):
            raise ValueError(f"axis must be None (per tensor), 0 (per row) or 1 (per column), not {self.axis!r}")
        if self.group_size is not None:
            if type(self.group_size) is not int or self.group_size < 1:
                raise ValueError(f"group_size must be a whole number of at least 1, or None, not {self.group_size!r}")
            if self.axis != 0:
                raise ValueError(f"groups run along a row: group_size needs axis=0, not axis={self.axis!r}")
        self.check_grid()
        self.check_scales()

    def check_grid(self):
        if self.grid == "integer":
            return
        if self.grid not in GRID_BITS:
            raise ValueError(f"grid must be one of integer, {', '.join(GRID_BITS)}, not {self.grid!r}")
        if self.bits != GRID_BITS[self.grid]:
            raise ValueError(f"the grid {self.grid!r} has {GRID_BITS[self.grid]} bits, not {self.bits}")
        if not self.symmetric:
            raise ValueError(f"the grid {self.grid!r} has its zero in the middle: it needs symmetric=True")

    def check_scales(self):
        if self.scales not in SCALE_NAMES:
            raise ValueError(f"scales must be one of {', '.join(SCALE_NAMES)}, not {self.scales!r}")
        if self.scales in ("e8m0", "e4m3") and not self.symmetric:
            raise ValueError(f"scales={self.scales!r} are too coarse for a range with two ends: use symmetric=True")
        if self.scales == "e8m0" and self.grid == "nf4":
            raise ValueError("the grid 'nf4' ends at the largest weight itself, which a power of two misses")
        if self.scales in SHARED_SCALES and self.axis is None:
            raise ValueError(f"scales={self.scales!r} share a number among many scales; axis=None has but one")

    @property
    def largest(self) -> float:
        """The largest number of the grid, which the largest magnitude of a block is mapped to in symmetric mode."""
        return LARGEST_LEVEL.get(self.grid, 2 ** (self.bits - 1) - 1)

    @property
    def granularity(self) -> str:
        """In words, what shares one scale: "per tensor", "per row", "per column" or "per group of 64"."""
        if self.group_size is not None:
            return f"per group of {self.group_size}"
        return {None: "per tensor", 0: "per row", 1: "per column"}[self.axis]

    def settings(self) -> dict:
        """What a file says of it: all arguments, but for a grid and scales that are the usual ones."""
        usual = {"grid": "integer", "scales": "float32"}
        return {key: value for key, value in asdict(self).items() if key not in usual or usual[key] != value}

    def __str__(self):
        mode = f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'}"
        words = [GRID_NAMES.get(self.grid, mode), self.granularity, SCALE_NAMES[self.scales]]
        return ", ".join(word for word in words if word)


def whole_number(value):
    """A whole number of NumPy as an int; anything else, True and False among it, as it came."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


# The schemes that most models in use are quantized with, by the names the field gives their weights.
INT8 = Scheme(bits=8)
INT4 = Scheme(bits=4, symmetric=False, group_size=64)
INT2 = Scheme(bits=2, symmetric=False, group_size=32)
NF4 = Scheme(bits=4, group_size=64, grid="nf4", scales="double")
MXFP4 = Scheme(bits=4, group_size=32, grid="e2m1", scales="e8m0")
NVFP4 = Scheme(bits=4, group_size=16, grid="e2m1", scales="e4m3")
FP8 = Scheme(bits=8, grid="e4m3")
