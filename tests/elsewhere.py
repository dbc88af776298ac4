"""A device that no test machine needs: its tensors compute on the processor, and must not meet those of the processor.

A card and Apple's MPS refuse an operation between a tensor of theirs and one of the processor; on a machine without
them nothing does. Here torch's device "meta", which has no values of its own, stands for them: within `elsewhere` a
tensor moved to it keeps its values on the processor and is refused what a card refuses, so a run there gives the same
numbers as on the processor or stops where it would on a card. Speed, precision and kernels are not those of a card.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import wmlkit
from wmlkit import device

ELSEWHERE = torch.device("meta")
ops = torch.ops.aten
BETWEEN_DEVICES = {ops._to_copy.default, ops.copy_.default, ops.copy.default}
INDEXING = {ops.index.Tensor, ops.index_put.default, ops.index_put_.default, ops._index_put_impl_.default}
# what cannot be answered before the device has computed it
WAITS = {ops._local_scalar_dense.default, ops.nonzero.default, ops.masked_select.default, ops.equal.default}


class There(Tensor):
    """A tensor on `ELSEWHERE`; `values` are its own, on the processor."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> There:
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def tolist(self) -> Any:
        """torch has none for tensors of a subclass."""
        return self.detach().cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.values})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _run(function, args, kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        if any(isinstance(one, There) for one in flat) and (
            function in WAITS
            or (function in INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1]))
            or (function in BETWEEN_DEVICES and not isinstance(result, There))
        ):
            self.waits.append(str(function))
        return result


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the values, with its result where a card would leave it. Raises RuntimeError where a card would
    refuse, and for float64, which MPS lacks."""
    flat, form = tree_flatten((args, kwargs))
    there = [one for one in flat if isinstance(one, There)]
    here = [one for one in flat if isinstance(one, Tensor) and not isinstance(one, There)]
    # a number without dimensions may lie on the processor, and so may an index, but not what is written
    index = function in INDEXING and isinstance(args[0], There) and not any(one is args[2] for one in here if args[2:])
    if there and not index and function not in BETWEEN_DEVICES and any(one.ndim for one in here):
        raise RuntimeError(f"{function}: {[tuple(one.shape) for one in here]} on the processor, {there} elsewhere")
    target = kwargs.get("device")
    if target is not None:
        goes_there = torch.device(target) == ELSEWHERE
    else:
        goes_there = isinstance(args[0], There) if function in BETWEEN_DEVICES else bool(there)
    values, options = tree_unflatten([_here(one) for one in flat], form)
    if target is not None:
        options["device"] = torch.device("cpu")
    result = function(*values, **options)
    given = {id(one.values): one for one in there} | {id(one): one for one in here}

    def placed(tensor: Tensor) -> Tensor:
        known = given.get(id(tensor))  # what was changed in place
        if known is not None or not goes_there:
            return tensor if known is None else known
        if tensor._is_zerotensor():  # a derivative that is zero, without memory
            return torch.zeros((), dtype=tensor.dtype) if tensor.ndim == 0 else There(torch.zeros_like(tensor) + 0)
        if tensor.dtype == torch.float64:
            raise RuntimeError(f"{function}: float64 elsewhere")
        return There(tensor)

    return tree_map_only(Tensor, placed, result)


def _here(value: Any) -> Any:
    return value.values if isinstance(value, There) else value


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within the block `ELSEWHERE` is a device, and the one that the package chooses. Gives the list of operations for
    which the processor had to wait for it, which grows."""
    here = device.setup

    def setup(*args: Any, **kwargs: Any) -> device.Device:
        return replace(here(*args, **kwargs), device=ELSEWHERE)

    with monkeypatch.context() as patch:
        for found in pkgutil.walk_packages(wmlkit.__path__, "wmlkit."):
            if not found.name.endswith("__main__"):
                module = importlib.import_module(found.name)
                for name, value in (("setup", setup), ("best_device", lambda: ELSEWHERE)):
                    if getattr(module, name, None) is getattr(device, name) and module is not device:
                        patch.setattr(module, name, value)
        # tensors of a subclass cannot be made in inference mode
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad())
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # `Module.to`, of parameters of another kind
        try:
            with _Watch() as watch:
                yield watch.waits
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)
