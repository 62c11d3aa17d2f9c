"""A device that is not there: tensors that say that they lie on it, hold their values in memory, and are as strict as
CUDA's about what meets what.

torch lets one backend be written in Python (``privateuseone``); here it is one function, for every operation. It
refuses what CUDA refuses, a CPU tensor among those of the device or a CPU generator among them, and computes everything
else on the CPU. So whole runs go through it, with results, and the bits of the CPU. (torch's
autograd engine does not reach it: there is no backward pass.)
"""

import functools

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend()
DEVICE = torch.device("privateuseone:0")

_aten = torch.ops.aten
_MOVES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXES = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


class Pretended(torch.Tensor):
    """A tensor on the device; ``held`` is what it holds, in memory."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, *args, **(kwargs or {}))

    def tolist(self):
        return self.held.tolist()


def _computed(operation, *args, **kwargs):
    """One operation, as a GPU would do it or refuse to."""
    given = pytree.tree_leaves((args, kwargs))
    here = any(isinstance(x, Pretended) for x in given)
    device = kwargs.get("device")
    made_here = here if device is None else torch.device(device).type == DEVICE.type
    if any(isinstance(x, torch.Generator) for x in given):
        raise RuntimeError(f"{operation}: expected a generator of the device {DEVICE}, found one of the CPU")
    if here and operation not in _MOVES:
        for place, x in enumerate((*args, *kwargs.values())):
            elsewhere = [y for y in pytree.tree_leaves(x) if isinstance(y, torch.Tensor) and y.device != DEVICE]
            if not elsewhere or (operation in _INDEXES and place == 1):  # CUDA takes indices from anywhere
                continue
            scalar = all(y.ndim == 0 for y in elsewhere)
            if not (scalar and (torch.Tag.pointwise in operation.tags or (operation in _INDEXES and place == 2))):
                found = f"{DEVICE} and {elsewhere[0].device}"
                raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found {found}")
    held = {}

    def inside(x):
        if isinstance(x, Pretended):
            held[id(x.held)] = x
            return x.held
        return x

    args, kwargs = pytree.tree_map(inside, (args, kwargs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")

    def outside(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended):
            return x
        if id(x) in held:  # changed in place
            assert held[id(x)].shape == x.shape
            return held[id(x)]
        return Pretended(x) if made_here and operation is not _aten.copy_.default else x

    return pytree.tree_map(outside, operation(*args, **kwargs))


def _copied(source, target, non_blocking=False):
    """What torch asks for where it makes a tensor of numbers."""
    target.held.copy_(getattr(source, "held", source))
    return target


_all = torch.library.Library("_", "IMPL")
_all.fallback(_computed, "PrivateUse1")
_some = torch.library.Library("aten", "IMPL")
_some.impl("_copy_from", _copied, "PrivateUse1")
# torch would fill an empty tensor that it makes larger as it goes, which what wraps another cannot bear.
for _name in ("default", "start", "start_step"):
    _operation = getattr(_aten.arange, _name)
    _some.impl(_operation.name(), functools.partial(_computed, _operation), "PrivateUse1")
