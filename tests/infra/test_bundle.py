"""A bundle is set up from its own wheels, without what a machine's own torch replaces."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str) -> None:
    """Writes a wheel of one module."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def test_a_bundle_leaves_torch_to_the_system(tmp_path: Path) -> None:
    """Its wheels have no hashes in the lock when they were built from sdists; those of other systems are left out."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "wheels").mkdir()
    for name in ("torch", "small"):
        wheel(tmp_path / "wheels", name)
    lock = "".join(
        f"{name}==1.0{marker} \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{'1' * 64}\n"
        for name, marker in (("other", " ; sys_platform == 'win32'"), ("small", ""), ("torch", ""))
    )
    (tmp_path / "requirements-dev.lock").write_text(lock)
    (tmp_path / "here.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
        "[project]\nname = 'here'\nversion = '1'\n[tool.setuptools]\npy-modules = ['here']\n"
    )
    command = ["make", "setup", "TORCH=system", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    packages = next((tmp_path / ".venv" / "lib").glob("python3*/site-packages"))
    assert (packages / "small.py").exists(), done.stdout + done.stderr
    assert not (packages / "torch.py").exists()
