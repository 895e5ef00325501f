"""What to do with a tensor, in one small frozen object: how many bits, which mode, how fine a grid."""

from dataclasses import dataclass


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

    Raises:
        TypeError, ValueError: naming the argument that makes no sense, and what would.
    """

    bits: int = 8
    symmetric: bool = True
    axis: int | None = 0
    group_size: int | None = None

    def __post_init__(self):
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

    @property
    def granularity(self) -> str:
        """In words, what shares one scale: "per tensor", "per row", "per column" or "per group of 64"."""
        if self.group_size is not None:
            return f"per group of {self.group_size}"
        return {None: "per tensor", 0: "per row", 1: "per column"}[self.axis]

    def __str__(self):
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'}, {self.granularity}"


# The schemes that most models in use are quantized with, by the names the field gives their weights.
INT8 = Scheme(bits=8)
INT4 = Scheme(bits=4, symmetric=False, group_size=64)
INT2 = Scheme(bits=2, symmetric=False, group_size=32)
