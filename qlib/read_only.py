"""The weight of a quantized layer, for those who read it: real numbers that nobody can write to."""

import torch
from torch.utils._pytree import tree_leaves, tree_map

READ_ONLY = (
    "the weight of a quantized layer is made anew for whoever reads it; what is written to it would be lost: change, "
    "merge or tie float weights before the model is quantized, or put a float layer in the place of this one first"
)


class ReadOnlyWeight(torch.Tensor):
    """The real numbers of a quantized weight, which nobody can write to: that would be lost without a word.

    Its views, `data` and `detach()` among them, are of this kind too; all else that is computed of it is a plain
    tensor, and so is its copy. `torch.nn.Parameter(weight)` is a plain Parameter, to be written to.
    """

    _is_hf_initialized = True  # what transformers asks before it initializes a tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(written, cls) for written in tree_leaves(written_by(function, args, kwargs))):
            # A TypeError would be taken for "no such operator", and w += 1 would become w = w + 1.
            raise ValueError(f"{READ_ONLY} ({function.__name__})")
        with torch._C.DisableTorchFunctionSubclass():
            ours = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls)]
            made = function(*args, **kwargs)
            return made if isinstance(made, torch.Size) else tree_map(lambda part: read_only(part, ours), made)

    def plain(self):
        """The same numbers in the same memory, as a tensor that can be written to."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)

    def __deepcopy__(self, memo):
        return self.plain().clone()

    def __reduce_ex__(self, protocol):
        return self.plain().__reduce_ex__(protocol)

    def __repr__(self, **options):
        return self.plain().__repr__(**options)

    def __setattr__(self, name, value):
        if name == "_is_param":  # torch.nn.Parameter marks a view of a subclass so, and leaves its class as it was
            self.__class__ = torch.nn.Parameter
        else:
            super().__setattr__(name, value)


def written_by(function, args, kwargs):
    """What a function of PyTorch writes to, among its arguments: the first one if it works in place, and `out`."""
    name = function.__name__
    if name == "__set__":  # of an attribute: those that concern gradients are the reader's own
        in_place = function.__self__.__name__ not in ("requires_grad", "grad")
    else:
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
    first = args[0] if args else next(iter(kwargs.values()), None)
    return [kwargs.get("out"), first if in_place and name != "requires_grad_" else None]


def read_only(made, weights):
    """What a function made of read-only weights: itself, but a view of one of them is read-only, too."""
    if type(made) is torch.Tensor and any(torch._C._is_alias_of(made, weight) for weight in weights):
        return made.as_subclass(ReadOnlyWeight)
    if type(made).__module__ == "numpy" and hasattr(made, "setflags"):
        made.setflags(write=False)
    return made
