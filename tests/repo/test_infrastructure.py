"""The repository itself: lock files, versions, the core's imports, paths, the WebUI hooks."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import crdiff_ext

LONGEST_FILE = 300
CORE_MAY_IMPORT = {"torch", "safetensors", "crdiff_ext"}
LOCKS = ("dev.lock", "compat.lock", "gradio3.lock", "gradio4.lock", "imagereward.lock")


def locked(path: Path) -> list[Requirement]:
    rows = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(row) for row in rows if row]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def core_files(root: Path) -> list[Path]:
    folder = root / "crdiff_ext"
    return [p for p in sorted(folder.rglob("*.py")) if "webui" not in p.relative_to(folder).parts]


def imported(node: ast.AST) -> set[str]:
    """Top-level names of what an import statement brings in; relative imports are the package's."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {"crdiff_ext"} if node.level else {(node.module or "").partition(".")[0]}
    return set()


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_every_package_exactly_and_once(root: Path, name: str) -> None:
    rows = locked(root / "requirements" / name)
    names = [canonicalize_name(row.name) for row in rows]
    assert len(names) > 20
    assert len(set(names)) == len(names)
    for row in rows:
        pins = list(row.specifier)
        assert [pin.operator for pin in pins] == ["=="], row
        assert "*" not in pins[0].version, row
        assert row.url is None, row


def test_lock_satisfies_what_pyproject_asks_for(root: Path, project: dict) -> None:
    pins = {canonicalize_name(row.name): row for row in locked(root / "requirements" / "dev.lock")}
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        pin = pins[canonicalize_name(requirement.name)]
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{requirement} against {pin}"


def test_lock_is_what_runs_these_tests(root: Path) -> None:
    from importlib.metadata import version

    for row in locked(root / "requirements" / "dev.lock"):
        if row.marker is None or row.marker.evaluate():
            assert row.specifier.contains(version(row.name)), row


def test_linux_only_wheels_are_marked(root: Path) -> None:
    for name in LOCKS:
        for row in locked(root / "requirements" / name):
            if row.name.startswith(("nvidia-", "cuda-", "triton")):
                assert row.marker is not None, row
                assert not row.marker.evaluate({"sys_platform": "darwin"}), row


def test_one_version_everywhere(project: dict) -> None:
    assert project["version"] == crdiff_ext.__version__


def test_core_imports_torch_and_safetensors_only(root: Path) -> None:
    allowed = CORE_MAY_IMPORT | set(sys.stdlib_module_names)
    for path in core_files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            assert imported(node) <= allowed, f"{path}:{getattr(node, 'lineno', 0)}"


def test_core_imports_eagerly_and_relatively(root: Path) -> None:
    """A WebUI restores sys.path once the script is loaded: nothing may be imported later."""
    for path in core_files(root):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert node.col_offset == 0 or _type_checking_only(tree, node), (
                    f"{path}:{node.lineno}"
                )
            if isinstance(node, ast.Import):
                assert "crdiff_ext" not in imported(node), f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert "crdiff_ext" not in imported(node), f"{path}:{node.lineno}"


def _type_checking_only(tree: ast.Module, node: ast.stmt) -> bool:
    blocks = [top for top in tree.body if isinstance(top, ast.If)]
    return any("TYPE_CHECKING" in ast.unparse(b.test) and node in b.body for b in blocks)


def test_core_works_from_an_extensions_folder(root: Path, tmp_path: Path) -> None:
    """Dropped into extensions/, imported, then sys.path restored and every later import refused."""
    host = Path(__file__).parent / "host_like_import.py"
    extension = tmp_path / "extensions" / "crdiff"
    for folder in ("crdiff_ext", "scripts"):
        for source in sorted((root / folder).rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                target = extension / source.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    command = [sys.executable, "-I", str(host), str(extension)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(extension / "crdiff_ext" / "__init__.py")


def test_files_are_short(root: Path, files: list[Path]) -> None:
    long = {}
    for path in files:
        relative = path.relative_to(root)
        if path.suffix == ".py" and relative.parts[0] in ("crdiff_ext", "harness", "tools"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LONGEST_FILE:
                long[str(relative)] = lines
    assert not long


def test_no_paths_of_one_machine(root: Path, files: list[Path]) -> None:
    """Nobody's home folder, and not the folder that this checkout happens to lie in."""
    patterns = [rb"/ro" rb"ot/", rb"/ho" rb"me/\w+/", rb"/Us" rb"ers/\w+/", rb"\.py" rb"env/"]
    if len(root.parts) > 2:
        patterns.append(re.escape(str(root)).encode() + rb"\b")
    pattern = re.compile(rb"|".join(patterns))
    found = {str(p.relative_to(root)): m[0] for p in files if (m := pattern.search(p.read_bytes()))}
    assert not found


def test_license_is_complete(root: Path) -> None:
    text = (root / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_install_hook_is_silent_on_a_current_host(root: Path, tmp_path: Path) -> None:
    """In a subprocess without the host's own modules (`launch`, `modules`), as a host runs it."""
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-I", str(root / "install.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_install_hook_names_what_is_too_old(root: Path) -> None:
    hook = load(root / "install.py")
    assert hook.python_complaint((3, 10)) is None
    assert "3.9" in hook.python_complaint((3, 9))
    for current in ("2.1.0", "2.1.2+cu121", "2.14.1", "10.0", "unreadable"):
        assert hook.torch_complaint(current) is None
    for old in ("2.0.1+cu118", "1.13.1"):
        assert old in hook.torch_complaint(old)
    assert "no torch" in hook.torch_complaint(None)


def test_install_hook_knows_an_old_webui(root: Path, tmp_path: Path) -> None:
    """By what it has: the denoiser's own file came with AUTOMATIC1111 1.6."""
    hook = load(root / "install.py")
    assert hook.host_complaint(str(tmp_path)) is None
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "processing.py").touch()
    assert "1.6" in hook.host_complaint(str(tmp_path))
    (tmp_path / "modules" / "sd_samplers_cfg_denoiser.py").touch()
    assert hook.host_complaint(str(tmp_path)) is None


def test_install_hook_parses_on_old_pythons(root: Path) -> None:
    ast.parse((root / "install.py").read_text(), feature_version=(3, 7))


def test_preload_adds_flags_of_its_own_name_only(root: Path) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    load(root / "preload.py").preload(parser)
    assert vars(parser.parse_args([])) == {"crdiff_presets": None, "crdiff_disable": False}
    given = parser.parse_args(["--crdiff-presets", "mine.json", "--crdiff-disable"])
    assert vars(given) == {"crdiff_presets": "mine.json", "crdiff_disable": True}
