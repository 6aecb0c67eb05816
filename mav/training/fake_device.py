"""A CUDA device without a card: its tensors have shapes, types and places, but no numbers.

Inside `fake_cuda()` all code runs as it is. What is on the processor is computed; what is on "cuda" is a FakeTensor of
PyTorch, which refuses operations on two devices as a card does. A copy back to the processor holds zeros, and a whole
number that is read is -1, which is no index. On the way it is measured what the device would have to do and to hold,
and where the processor would wait for it.
"""

import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import GraphExecGroup
from torch.utils.flop_counter import flop_registry

ROUNDED = 512  # bytes; PyTorch's allocator gives whole blocks of so many
aten = torch.ops.aten
# Before torch 2.13 a node of autograd that is written in Python lives only as long as a node before it.
NODES_DIE = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
COPIES = (aten._to_copy.default, aten.copy_.default)
_attention = torch.nn.functional.scaled_dot_product_attention


class FakeCuda(TorchDispatchMode):
    """The device: what it computes and holds, and where the processor waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = self.peak = 0  # bytes
        self.flops = self.recomputed_flops = 0  # the latter are of forward passes that a backward pass repeats
        self.reads: list[str] = []  # FILE:LINE where a number of the device is read, which waits for it
        self.uploads: list[str] = []  # FILE:LINE of copies to the device that are not `non_blocking`
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # half of all calls ask on which device a tensor is
            return args[0].device
        leaves = tree_leaves((args, kwargs))
        on_device = any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves)
        # On the processor, where without a card no memory is pinned.
        if func is aten._pin_memory.default:
            return args[0]
        if not on_device:
            with unset_fake_temporarily():
                return func(*args, **({**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs))
        # In inference mode an operator that is made of others comes here whole.
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        # From the device to the processor, and back.
        if func is aten._local_scalar_dense.default:
            self.reads.append(_place())
            return {torch.bool: False}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else -1)
        if func in (aten.copy_.default, aten._foreach_copy_.default) and not isinstance(
            tree_leaves(args[0])[0], FakeTensor
        ):
            self.reads.append(_place())
            return args[0] if func is aten.copy_.default else None
        asynchronous = kwargs.get("non_blocking") or args[2:] == (True,) if func in COPIES else True
        if not asynchronous and not isinstance(args[func is aten.copy_.default], FakeTensor):
            self.uploads.append(_place())
        # On the device.
        out = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            repeated = self._backward and torch.is_grad_enabled()
            flops = count(*args, **kwargs, out_val=out)
            self.flops += 0 if repeated else flops
            self.recomputed_flops += flops if repeated else 0
        return tree_map_only(FakeTensor, self._placed, out)

    def _placed(self, tensor: FakeTensor) -> Tensor:
        """Counts the memory of a new tensor of the device, and makes one on the processor real."""
        if tensor.device.type == "cpu":
            self.reads.append(_place())
            with unset_fake_temporarily():
                return torch.zeros(tensor.shape, dtype=tensor.dtype)
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = -(-storage.nbytes() // ROUNDED) * ROUNDED

            def free(_: Any) -> None:
                del self._storages[key]
                self.allocated -= size

            self._storages[key] = weakref.ref(storage, free)
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        return tensor

    def run_backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor], *_: Any, **__: Any) -> tuple[()]:
        """Runs `_backward`, whose repeated forward passes are counted apart."""
        self._backward = True
        try:
            _backward(roots, gradients)
        finally:
            self._backward = False
        return ()


def _place() -> str:
    """The line, outside PyTorch and this file, that is being run."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}"


@contextmanager
def fake_cuda(device: FakeCuda | None = None) -> Iterator[FakeCuda]:
    """Lets "cuda" be this fake device, or a new one, while the block runs, with autocast and backward passes."""
    device = device or FakeCuda()
    with ExitStack() as stack:
        # PyTorch asks the driver for these two, and its autograd engine for streams, which only a card has.
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(mock.patch("torch.autograd._engine_run_backward", device.run_backward))
        stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention))
        # A module's tensors cannot be moved in place to a device of another kind.
        stack.enter_context(mock.patch("torch.nn.Module._apply", _moved))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(device)
        yield device


def _moved(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply`, which puts new parameters in the place of those that the conversion changes."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                new = convert(parameter.detach())
                if (new.device, new.dtype) != (parameter.device, parameter.dtype):
                    each._parameters[name] = nn.Parameter(new, parameter.requires_grad)
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    **options: Any,
) -> Tensor:  # fmt: skip
    """The kernel that a card would choose; without one PyTorch takes another, which keeps all attention weights."""
    if not isinstance(q, FakeTensor) or attn_mask is not None:
        return _attention(q, k, v, attn_mask, dropout_p, is_causal, **options)
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
    if q.dtype == torch.float32:
        grads = any(x.requires_grad for x in (q, k, v))
        return aten._scaled_dot_product_efficient_attention(q, k, v, None, grads, dropout_p, is_causal)[0]
    return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]


def _made(node: Any) -> float:
    """The number of a node in the order in which nodes were made."""
    try:
        return float(node._sequence_nr())
    except RuntimeError:  # before torch 2.13 a node written in Python does not say it: it comes right after its inputs
        inputs = [each for each, _ in node.next_functions if each is not None and not hasattr(each, "variable")]
        return max((_made(each) for each in inputs), default=0.0) + 0.5


def _backward(roots: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Does in Python what autograd's engine does for `Tensor.backward`, node by node in the engine's order."""
    waiting: dict[Any, int] = {}  # node -> gradients that have to come first
    given: dict[Any, list[Tensor | None]] = {}
    found = [root.grad_fn for root in roots]
    while found:
        for after, _place in found.pop().next_functions:  # type: ignore[union-attr]
            if after is not None:
                if after not in waiting:
                    found.append(after)
                waiting[after] = waiting.get(after, 0) + 1
    ready: list[Any] = [root.grad_fn for root in roots]
    before: dict[Any, list[Any]] = {}  # what keeps a node alive, where nothing else does
    for root, gradient in zip(roots, gradients, strict=True):
        _give(given, root.grad_fn, root.output_nr, gradient)
        root.detach_()  # it would keep the whole graph
    with torch.no_grad(), GraphExecGroup():
        while ready:
            # As in the engine, the node that was made last goes first, and what it kept is freed with it.
            node: Any = ready.pop(max(range(len(ready)), key=lambda i: _made(ready[i])))
            waiting.pop(node, None)
            holding = [node, *before.pop(node, [])]
            inputs = given.pop(node, None) or [None]
            if hasattr(node, "variable"):  # the end of the graph, a parameter
                if inputs[0] is not None:
                    kept = node.variable.grad
                    node.variable.grad = inputs[0] if kept is None else kept.add_(inputs[0])
                continue
            outputs: Any
            edges = node.next_functions
            if hasattr(node, "needs_input_grad"):  # a function in Python, which returns something for numbers too
                returned = node.apply(*inputs)
                returned = returned if isinstance(returned, tuple) else (returned,)
                outputs = [out for out, needed in zip(returned, node.needs_input_grad, strict=True) if needed]
                edges = [edge for edge in edges if edge[0] is not None]
                del returned
            else:
                outputs = node(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (after, place), output in zip(edges, outputs, strict=True):
                if after is None:
                    continue
                if NODES_DIE and hasattr(after, "needs_input_grad"):
                    before.setdefault(after, []).extend(holding)
                _give(given, after, place, output)
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)
            del node, inputs, outputs, edges, after, output, holding


def _give(given: dict[Any, list[Tensor | None]], node: Any, place: int, gradient: Tensor | None) -> None:
    """Adds a gradient to what a node gets, summed over what was broadcast and in the type of the node's output."""
    slots = given.setdefault(node, [None] * len(node._input_metadata))
    if gradient is not None:
        output = node._input_metadata[place]
        if gradient.shape != output.shape:
            gradient = gradient.sum_to_size(output.shape)
        gradient, before = gradient.to(output.dtype), slots[place]
        slots[place] = gradient if before is None else before + gradient
