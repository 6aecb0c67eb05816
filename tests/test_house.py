"""The house keeps its order: imports go one way, without circles; files and lines stay short; private API is listed."""

import ast
import importlib
import subprocess
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("filters", "flows", "mav")
# From the bottom to the top: a room imports from rooms on lower lines, and from itself.
LEVELS = (
    ("mav.secrets", "mav.imports"),
    ("mav.errors",),
    ("mav.recipes", "mav.storage"),
    ("mav.models", "mav.diffusion"),
    ("mav.data",),
    ("mav.training",),
    ("mav.generation",),
    ("mav.evaluation",),
    ("mav.study", "mav.world"),
    ("mav.report", "filters"),
    ("flows.services",),
    ("flows.engine",),
    ("flows.worker_group",),
    ("flows.evaluation", "flows.training"),
    ("flows.demo",),
    ("flows.images", "flows.videos"),
    ("flows.make_a_video",),
    ("flows.deploy",),
    ("flows.cli",),
)
ENGINE = (
    "flows.engine",
    "flows.services",
    "mav.errors",
    "mav.recipes",
    "mav.secrets",
    "mav.storage",
)  # all that the engine may import
LIGHT = ("mav.models", "mav.diffusion")  # these import torch, einops and nothing heavier when they are imported
HEAVY = ("ray", "prefect", "decord", "av", "cv2", "pyarrow", "open_clip", "img2dataset", "webdataset", "pandas")
LONGEST_FILE, LONGEST_LINE = 300, 120
# Names that their projects may change without notice, and what they are needed for.
PRIVATE = {
    "ray._private.services.start_ray_process": "the dashboard starts without its requests to clouds",
    "ray._common.usage.usage_lib.get_cloud_from_metadata_requests": "the same, in the dashboard's process",
    "ray._private.state.available_resources_per_node": "the report of what a waiting stage waits for",
    "ray._private.state.state": "which nodes are drained, for a training that has to save",
    "ray.experimental.internal_kv._internal_kv_get": "whether the cluster starts nodes by itself",
    "ray.train.torch.config._TorchBackend": "SIGTERM is caught where Ray Train sets its workers up",
    "torch.distributed.checkpoint._fsspec_filesystem.FsspecReader": "sharded checkpoints on any storage",
    "torch.distributed.checkpoint._fsspec_filesystem.FsspecWriter": "the same",
    "torch._subclasses.fake_tensor.FakeTensor": "a CUDA device without a card, for tests and `mav describe`",
    "torch._subclasses.fake_tensor.FakeTensorMode": "the same",
    "torch._subclasses.fake_tensor.unset_fake_temporarily": "the same",
    "torch.utils._python_dispatch.TorchDispatchMode": "the same",
    "torch.utils._pytree.tree_leaves": "the same",
    "torch.utils._pytree.tree_map_only": "the same",
    "torch._foreach_add_": "averages of many tensors in one call, as torch's own optimisers do it",
    "torch._foreach_copy_": "the same",
    "torch._foreach_lerp_": "the same",
    "torch._foreach_zero_": "the same",
}


def files() -> list[Path]:
    """Returns the Python files of the program and of the tests."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = [ROOT / name for name in listed.split()] or [
        p for part in (*PACKAGES, "tests") for p in (ROOT / part).rglob("*.py")
    ]
    return [path for path in found if path.exists()]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PROGRAM = {
    module_of(path): ast.parse(path.read_text()) for path in files() if path.relative_to(ROOT).parts[0] in PACKAGES
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields the full name of everything that a module imports, also within functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def own(tree: ast.AST) -> set[str]:
    """Returns the program's modules that a module imports."""
    found = set()
    for name in imports(tree):
        found |= {known for known in (name, name.rpartition(".")[0]) if known in PROGRAM}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def level(module: str) -> int:
    (found,) = [number for number, rooms in enumerate(LEVELS) if any(inside(module, room) for room in rooms)]
    return found


def test_imports_point_down_the_list() -> None:
    wrong = []
    for module, tree in PROGRAM.items():
        if module in PACKAGES:
            continue
        for other in own(tree):
            same_room = any(inside(module, room) and inside(other, room) for rooms in LEVELS for room in rooms)
            if not same_room and other not in PACKAGES and level(other) >= level(module):
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_circle_of_imports() -> None:
    graph = {module: own(tree) - {module} for module, tree in PROGRAM.items()}
    while free := [module for module, needed in graph.items() if not needed & graph.keys()]:
        for module in free:
            del graph[module]
    assert graph == {}, "what is left imports in a circle"


def test_the_engine_knows_nothing_of_images_videos_networks_or_the_demo() -> None:
    reached, todo = set(), [module for module in PROGRAM if inside(module, "flows.engine")]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += own(PROGRAM[module])
    outside = {module for module in reached if not any(inside(module, room) for room in ENGINE)}
    assert outside == set()


def test_nothing_of_the_library_knows_the_demo_world() -> None:
    users = [m for m, tree in PROGRAM.items() if any(inside(other, "mav.world") for other in own(tree))]
    assert {m for m in users if not inside(m, "mav.world")} <= {"flows.demo", "flows.cli.demo_world"}


def test_networks_import_torch_and_nothing_heavier() -> None:
    wrong = []
    for module, tree in PROGRAM.items():
        if any(inside(module, room) for room in LIGHT):
            body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            top = ast.Module(body, [])
            wrong += [f"{module} imports {name}" for name in imports(top) if name.split(".")[0] in HEAVY]
    assert wrong == []


def test_files_and_lines_are_short() -> None:
    long_files, long_lines = [], []
    for path in files():
        lines = path.read_text().splitlines()
        name = str(path.relative_to(ROOT))
        long_files += [f"{name}: {len(lines)} lines"] if len(lines) > LONGEST_FILE else []
        long_lines += [f"{name}:{n}" for n, line in enumerate(lines, 1) if len(line) > LONGEST_LINE]
    assert (long_files, long_lines) == ([], [])


def test_folders_hold_about_a_dozen_files() -> None:
    folders: dict[Path, int] = {}
    for path in files():
        if path.relative_to(ROOT).parts[0] in PACKAGES and not path.name.startswith("__"):
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in folders.items() if count > 14} == {}


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yields the names with an underscore that a module takes from other projects."""
    roots = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.split(".")[0]
                roots |= {name.asname: name.name} if name.asname else {top: top}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots |= {(name.asname or name.name): f"{node.module}.{name.name}" for name in node.names}
    roots = {name: full for name, full in roots.items() if full.split(".")[0] not in (*PACKAGES, "__future__")}
    for full in roots.values():
        if any(part.startswith("_") for part in full.split(".")):
            yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in roots:
            full = f"{roots[node.value.id]}.{node.attr}"
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                yield full


def test_private_api_is_listed() -> None:
    found = {name for tree in PROGRAM.values() for name in private_names(tree)}
    known = set(PRIVATE) | {name.rpartition(".")[0] for name in PRIVATE}
    assert found - known == set(), "name it in PRIVATE, with what it is needed for"


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_private_api_is_there(name: str) -> None:
    """An upgrade that takes it away fails here, and says what it was for."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        reduce(getattr, parts[length:], found)
        return
    pytest.fail(f"{name} is gone: {PRIVATE[name]}")
