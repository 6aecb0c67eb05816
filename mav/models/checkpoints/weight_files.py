"""Reads the tensors of weight files from others without running anything that is in them.

| file | how it is read |
|---|---|
| `.safetensors` | by safetensors |
| `.npz` | by numpy, without pickles |
| a zip of `torch.save` or `torch.jit.save` | here: its pickle is followed as far as it builds tensors |
| another file of `torch.save` | by `torch.load(weights_only=True)` |

`torch.jit.load` would run code of the file. Here a TorchScript's attributes are taken from its pickle; an archive whose
classes pack their state by code of their own is refused.
"""

import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
# Functions that return their first argument, or what stands for it.
FIRST = {"torch._utils _rebuild_parameter", "torch.jit._pickle restore_type_tag"}
FIRST |= {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
COMPRESSED = 100  # times its size to which an npz may unpack; float weights hardly shrink
MOST_NAMES, MOST_CHARACTERS, MOST_DIMENSIONS = 100_000, 1000, 64  # characters of a name, dimensions of a tensor
TOO_MUCH = "it unpacks to more than its own size"
CONVERT = (
    "where its code may be run, convert it: "
    "safetensors.torch.save_file(torch.jit.load(FILE).state_dict(), 'NAME.safetensors')"
)


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Returns what a file holds by name: tensors, and what stands beside them in a checkpoint.

    Raises ValueError with the reason, and OSError when the file cannot be opened.
    """
    name = os.fspath(path)
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import load_file

            found: Any = load_file(name)
        elif name.endswith(".npz"):
            with zipfile.ZipFile(name) as archive:
                refuse_bombs(archive, COMPRESSED * os.path.getsize(name))
            with np.load(name, allow_pickle=False) as arrays:
                found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            with open(name, "rb") as file:
                found = read_torch(file)
    except (OSError, ValueError):
        raise
    except Exception as error:  # each format has errors of its own, MemoryError among them
        raise ValueError(_first_line(error)) from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__} instead of tensors by name")
    return found


def read_torch(file: IO[bytes]) -> Any:
    """Returns what `torch.save` wrote, or the tensors of a TorchScript's module by name. Raises ValueError."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return _Archive(archive, file.seek(0, os.SEEK_END)).read()
        file.seek(0)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch would have its reader run the file's code
        raise ValueError("it is damaged, or holds more than tensors, whose code is never run") from None
    except Exception as error:  # as above
        raise ValueError(_first_line(error)) from None
    for value in found.values() if isinstance(found, dict) else [found]:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            _refuse_expanded(value.numel(), value.untyped_storage().nbytes() // value.element_size())
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def refuse_bombs(archive: zipfile.ZipFile, most: int) -> None:
    """Raises ValueError for an archive that unpacks to more than `most` bytes."""
    if sum(member.file_size for member in archive.infolist()) > most:
        raise ValueError(TOO_MUCH)


def _refuse_expanded(elements: int, stored: int) -> None:
    if elements > stored:
        raise ValueError(f"a tensor of {elements:,} elements has a storage of {stored:,}")


class _Unknown:
    """Stands for anything in a pickle that is no tensor."""


class _Global(str):
    """The name of a class or function in a pickle, which is never looked up."""


class _Module(dict[str, Any]):
    """The attributes of an object of a TorchScript."""


class _Archive:
    """A zip of torch, whose `data.pkl` is followed instruction by instruction. Raises ValueError.

    What is read of it may unpack to `most` bytes in all; the code of a TorchScript, which shrinks, is not read.
    """

    def __init__(self, archive: zipfile.ZipFile, most: int) -> None:
        self._zip, self._left = archive, most
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it is no archive of torch.save or torch.jit.save")
        self._pickle = pickles[0]
        self._prefix = self._pickle.removesuffix("data.pkl")
        order = f"{self._prefix}byteorder"
        if order in names and self._member(order) != b"little":
            raise ValueError("its bytes are in another order than this machine's")
        self._storages: dict[str, bytearray] = {}

    def read(self) -> Any:
        """Returns the pickled object; of a TorchScript's module the tensors by name."""
        found = self._follow(self._member(self._pickle))
        return dict(_named(found)) if isinstance(found, _Module) else found

    def _member(self, name: str) -> bytes:
        self._left -= self._zip.getinfo(name).file_size
        if self._left < 0:
            raise ValueError(TOO_MUCH)
        return self._zip.read(name)

    def _follow(self, data: bytes) -> Any:
        stack, marks, memo = list[Any](), list[int](), dict[Any, Any]()

        def since_mark() -> list[Any]:
            at = marks.pop()
            taken = stack[at:]
            del stack[at:]
            return taken

        def pop(number: int = 1) -> list[Any]:
            if len(stack) - (marks[-1] if marks else 0) < number:
                raise ValueError("a broken pickle")
            taken = stack[-number:]
            del stack[-number:]
            return taken

        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return pop()[0]
                case "MARK":
                    marks.append(len(stack))
                case "GLOBAL":
                    stack.append(_Global(argument))
                case "STACK_GLOBAL":
                    stack.append(_Global(" ".join(pop(2))))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_SET":
                    stack.append(_Unknown())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(int(opcode.name[-1]))))
                case "APPEND":
                    self._extend(stack, pop())
                case "APPENDS" | "ADDITEMS":
                    self._extend(stack, since_mark())
                case "SETITEM":
                    self._set(stack, pop(2))
                case "SETITEMS":
                    self._set(stack, since_mark())
                case "BINPUT" | "LONG_BINPUT" | "PUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    stack.append(memo[argument])
                case "BINPERSID":
                    stack.append(self._storage(pop()[0]))
                case "NEWOBJ":
                    kind, _ = pop(2)
                    module = isinstance(kind, _Global) and kind.startswith("__torch__")
                    stack.append(_Module() if module else _Unknown())
                case "REDUCE":
                    stack.append(self._reduced(*pop(2)))
                case "BUILD":
                    self._build(stack, pop()[0])
                case _ if isinstance(argument, bool | int | float | str | bytes):
                    stack.append(argument)
                case other:
                    raise ValueError(f"its pickle has the instruction {other}")
        raise ValueError("a broken pickle")

    @staticmethod
    def _extend(stack: list[Any], values: list[Any]) -> None:
        if isinstance(stack[-1], list):
            stack[-1].extend(values)

    @staticmethod
    def _set(stack: list[Any], values: list[Any]) -> None:
        if isinstance(stack[-1], dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            stack[-1].update((key, value) for key, value in pairs if isinstance(key, str | int | float | bytes))

    @staticmethod
    def _build(stack: list[Any], state: Any) -> None:
        if isinstance(stack[-1], _Module):
            if not isinstance(state, dict):
                raise ValueError(f"its classes pack their state by code of their own: {CONVERT}")
            stack[-1].update(state)

    def _reduced(self, function: Any, arguments: Any) -> Any:
        # Only names are compared: tuples of tuples take for ever.
        if not isinstance(arguments, tuple) or not isinstance(function, _Global | _Unknown):
            raise ValueError("a broken pickle")
        if function == "collections OrderedDict" and not arguments:
            return {}
        if function in FIRST and arguments:
            return arguments[0]
        if function == "torch._utils _rebuild_tensor_v2" and len(arguments) >= 4:
            return self._tensor(*arguments[:4])
        return _Unknown()

    def _storage(self, name: Any) -> Any:
        """Returns (dtype, bytes) of the storage that a pickle refers to."""
        if not isinstance(name, tuple) or len(name) < 3 or name[0] != "storage":
            raise ValueError("a broken pickle")
        kind, key = name[1:3]
        if not isinstance(kind, _Global) or not isinstance(key, str):
            raise ValueError("a broken pickle")
        kind = STORAGES.get(kind.rpartition(" ")[2])
        if kind is None:
            return _Unknown()
        if key not in self._storages:
            self._storages[key] = bytearray(self._member(f"{self._prefix}data/{key}"))
        return kind, self._storages[key]

    @staticmethod
    def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
        if isinstance(storage, _Unknown):
            return storage
        kind, data = storage
        if not len(size) == len(stride) <= MOST_DIMENSIONS:
            raise ValueError("a tensor has no such shape")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)):
            raise ValueError("a tensor has no such shape")
        stored = len(data) // kind.itemsize
        elements = math.prod(size)
        _refuse_expanded(elements, stored)
        if not elements:
            return torch.empty(size, dtype=kind)
        if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= stored:
            raise ValueError("a tensor reaches beyond its storage")
        flat = torch.frombuffer(data, dtype=kind, count=stored)
        return flat.as_strided(size, stride, offset)


def _named(module: _Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a TorchScript's module and of those within it, each by its full name."""
    waiting: list[tuple[str, _Module]] = [("", module)]
    seen = 0
    while waiting:
        prefix, inner = waiting.pop()
        for name, value in inner.items():
            seen += 1
            if seen > MOST_NAMES:  # modules may be within each other
                raise ValueError(f"it has more than {MOST_NAMES:,} attributes")
            if len(f"{prefix}{name}") > MOST_CHARACTERS:
                raise ValueError(f"it has a name of more than {MOST_CHARACTERS:,} characters")
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
