"""A GPU that is not there: CUDA's device rules on any machine, with real numbers.

Every operation runs twice. Once on fake CUDA tensors, where torch itself applies its device rules (``FakeTensorMode``),
and once on the CPU, which gives the numbers. So code that looks at values (masks, ``nonzero``, checks for NaN) runs as
it would on a GPU, and results can be compared with the CPU's. What a GPU would have to be waited for is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WITHOUT_FAKE = (aten._fused_adamw_.default, aten._fused_adamw_.tensor_lr)
"""In-place operations that torch cannot run on fake tensors."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""They send an index that is on the CPU to the GPU of what is indexed, from where it lies."""
COPIES = (aten._to_copy.default, aten.copy_.default)


class PretendedGPU:
    """Inside, ``device`` exists: ``.to(device)`` works and operations follow CUDA's device rules."""

    def __init__(self, device: str = "cuda:1", backward: bool = False) -> None:
        """Not device 0 unless asked for, so that code which assumes that one is found out.

        ``backward``: autograd runs, but autocast does not, since it looks at the device in the same place.
        """
        self.device, self.backward = torch.device(device), backward
        self.syncs: Counter[str] = Counter()
        """Operations for which a CPU waits until the GPU is done, by name."""
        self.copies_in = 0
        """Tensors that went from the CPU to the GPU."""
        self.pageable: list[tuple[int, ...]] = []
        """Shapes of those that did not lie in pinned memory: such a copy waits for what is queued before it."""
        self.unready: list[tuple[int, ...]] = []
        """Shapes of what came to the CPU without waiting: it would be read before it is there."""
        self.fake_mode = _FakeTensorMode(self.device)

    def forget(self) -> None:
        """Count from here."""
        self.syncs.clear()
        self.copies_in = 0
        self.pageable.clear()
        self.unready.clear()

    @contextmanager
    def __call__(self) -> Iterator[PretendedGPU]:
        with ExitStack() as stack:
            if self.backward:
                stack.enter_context(patch.object(torch.Tensor, "_make_subclass", _make_subclass))
            stack.enter_context(patch.object(torch, "Generator", Generator))
            stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
            stack.enter_context(patch.object(torch.Tensor, "pin_memory", _pinned))
            stack.enter_context(patch.object(torch, "empty", _empty))
            # Fake tensors are for one thread.
            stack.enter_context(patch("dpvla.ahead.ahead", lambda items, depth: iter(items)))
            # Operators that only CUDA has would give no numbers here.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self.fake_mode)
            stack.enter_context(_Values(self))
            stack.enter_context(_Functions(self))
            yield self


def value(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of the pretended GPU, on the CPU."""
    return tensor.real_value if isinstance(tensor, FakeTensor) else tensor  # type: ignore[attr-defined]


class Generator(torch.Generator):
    """A generator of any device that draws on the CPU."""

    pretended: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.pretended = torch.device(device)
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.pretended


_plain_empty = torch.empty


def _pinned(tensor: Tensor) -> Tensor:
    """``Tensor.pin_memory``, which asks the driver."""
    copy = tensor.clone()
    value(copy).is_pretended_pinned = True  # type: ignore[attr-defined]
    return copy


def _empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
    """``torch.empty``, which asks the driver for pinned memory."""
    made = _plain_empty(*args, **kwargs)
    value(made).is_pretended_pinned = pin_memory  # type: ignore[attr-defined]
    return made


_plain_make_subclass = torch.Tensor._make_subclass


def _make_subclass(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Autograd's engine would ask the driver for the streams of a fake tensor's device: it sees none here."""
    if issubclass(cls, FakeTensor):
        kwargs["dispatch_device"] = False
    return _plain_make_subclass(cls, *args, **kwargs)


class _FakeTensorMode(FakeTensorMode):
    """Where autograd sees no device (``_make_subclass``), its formulas ask for tensors on none: they get the GPU's.

    0-dim ones, e.g. the 0 of ``where(mask, 0.0, x)``, become CPU tensors, which go with those of any device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._of_autograd = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("device") == torch.device("meta"):
            made: Any = super().__torch_dispatch__(func, types, args, kwargs | {"device": self._of_autograd})
            if made.ndim:
                return made
            kwargs = kwargs | {"device": torch.device("cpu")}
        return super().__torch_dispatch__(func, types, args, kwargs)


class _Values(TorchDispatchMode):
    """Keeps the numbers of every fake tensor beside it."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(self._faked, (args, kwargs or {}))
        self._note(func, args, kwargs)
        try:
            fakes = self._in_one_place(args) if func in WITHOUT_FAKE else func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            fakes = None
            if self._on_gpu(args, kwargs):
                self.gpu.syncs[str(func)] += 1
        with unset_fake_temporarily():
            values = func(*tree_map(value, args), **self._on_cpu(kwargs))
        if fakes is None and values is not None:
            return tree_map(lambda result: self._like(result, args, kwargs), values)
        for fake, real in zip(tree_leaves(fakes), tree_leaves(values), strict=True):
            if isinstance(fake, FakeTensor):
                fake.real_value = real  # type: ignore[attr-defined]
        return fakes

    def _faked(self, item: Any) -> Any:
        if not isinstance(item, Tensor) or isinstance(item, FakeTensor):
            return item
        fake: Any = self.gpu.fake_mode.from_tensor(item)
        fake.real_value = item
        return fake

    @staticmethod
    def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = tree_map(value, kwargs)
        return kwargs | {"device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs

    @staticmethod
    def _on_gpu(args: Any, kwargs: Any) -> bool:
        return any(isinstance(leaf, FakeTensor) and leaf.device.type == "cuda" for leaf in tree_leaves((args, kwargs)))

    @staticmethod
    def _in_one_place(args: Any) -> None:
        devices = {leaf.device for leaf in tree_leaves(args) if isinstance(leaf, FakeTensor)}
        if len(devices) > 1:
            raise RuntimeError(f"expected all tensors of an in-place operation on one device, found {devices}")

    def _like(self, result: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        device = self.gpu.device if self._on_gpu(args, kwargs) else torch.device("cpu")
        fake: Any = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=device)
        fake.real_value = result
        return fake

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Count copies between devices."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if func in INDEXING and tensors[0].device.type == "cuda":
            on_cpu = [
                leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, FakeTensor) and leaf.device.type == "cpu"
            ]
            self.gpu.copies_in += len(on_cpu)
            self.gpu.pageable += [tuple(index.shape) for index in on_cpu]
        if func in COPIES:
            if self.gpu.backward and func is aten.copy_.default and not any(tensors[-1].stride()):
                return  # ``x[...] = 1.0``, which fills where autograd sees the devices
            source = tensors[-1].device.type
            target = tensors[0].device if func is aten.copy_.default else kwargs.get("device") or tensors[0].device
            if source != torch.device(target).type:
                later = kwargs.get("non_blocking", args[2] if func is aten.copy_.default and len(args) > 2 else False)
                if source == "cuda" and later:
                    self.gpu.unready.append(tuple(tensors[-1].shape))
                elif source == "cuda":
                    self.gpu.syncs["copy to the CPU"] += 1
                else:
                    self.gpu.copies_in += 1
                    if not (later and getattr(value(tensors[-1]), "is_pretended_pinned", False)):
                        self.gpu.pageable.append(tuple(tensors[-1].shape))


class _Functions(TorchFunctionMode):
    """What has to be caught before it reaches the dispatcher."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], FakeTensor):
            if args[0].device.type != "cpu":
                raise TypeError(f"can't convert {args[0].device} device type tensor to numpy")
            with _disable_current_modes():
                return func(value(args[0]), *args[1:], **kwargs)
        if func is torch.Tensor.tolist and isinstance(args[0], FakeTensor):
            self._gpu.syncs["tolist"] += args[0].device.type != "cpu"
            with _disable_current_modes():
                return value(args[0]).tolist()
        if func is torch.Tensor.__deepcopy__:
            return _deep_copy(*args)
        result = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if isinstance(generator, Generator) and result.device.type != generator.device.type:
            raise RuntimeError(f"expected a generator of {result.device}, found one of {generator.device}")
        return result


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Any:
    """torch would copy the storage, of which a fake tensor has none, nor what is made beside it."""
    if id(tensor) not in memo:
        copied: Tensor = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    return memo[id(tensor)]
