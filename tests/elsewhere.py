"""A device beside the processor, for machines without one: `elsewhere`.

    python tests/elsewhere.py train fashion_small --device elsewhere …

runs snnir with it. The device's memory and arithmetic are the processor's own, so results can be
compared to the last bit, but torch takes it for a device of its own, and as on CUDA an operation on
tensors of both fails (but for single numbers, indices and copies), and so does `numpy()`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "elsewhere"
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default}
"""Operations that take tensors of both."""


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())


class _Tensor(Tensor):
    """A tensor on the device; `held` has its values."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """What torch answers without an operation that could be dispatched."""
        if function in (Tensor.data_ptr, Tensor.tolist):
            return getattr(args[0].held, function.__name__)()
        if function is Tensor.numpy:
            raise TypeError(f"found a tensor on {NAME}, expected one on the processor")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if function == Tensor.data.__set__:
            args[0].held = args[1].held
        return result

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = any(isinstance(x, _Tensor) for x in tensors)
    here = [x for x in tensors if x.dim() and not isinstance(x, _Tensor)]
    if there and here and operation not in CROSSING:
        raise RuntimeError(f"{operation}: found tensors on {NAME} and on {here[0].device}")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
        if there:
            kwargs = {**kwargs, "device": torch.device("cpu")}
    elif operation is aten.copy_.default:
        there = isinstance(args[0], _Tensor)
    held_args, held_kwargs = tree_map_only(_Tensor, lambda x: x.held, (args, kwargs))
    result = operation(*held_args, **held_kwargs)
    if not there:
        return result
    result = tree_map_only(Tensor, _Tensor, result)
    return return_and_correct_aliasing(operation, args, kwargs, result)


class _Operations(TorchDispatchMode):
    """Operations that no tensor of the device takes part in, such as those that make one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Tensors of Python's numbers, which torch makes beneath its dispatch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and "device" in kwargs:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if function is Tensor.new_tensor:
            like, data = args
            return torch.tensor(data, dtype=like.dtype).to(like.device)
        return function(*args, **kwargs)


@contextmanager
def elsewhere():
    """The device exists within. Backward passes run in the caller's thread: the one that torch
    keeps for a device may want Python's lock when Python ends, and then ends the process."""
    with ExitStack() as modes:
        modes.enter_context(_Operations())
        modes.enter_context(_Literals())
        modes.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield


if __name__ == "__main__":
    from snnir.cli import main

    with elsewhere():
        main()
