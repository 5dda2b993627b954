"""The package from outside: quick to import, one top-level name in the wheel, three ways to start."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import moe_router

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "sklearn", "pyarrow", "matplotlib", "datasets", "peft", "bitsandbytes", "numpy")


def python(*args, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def loaded_after(code):
    """The heavy packages that are loaded once `code` has run in a fresh interpreter."""
    tail = f"import sys; print('LOADED', *[n for n in {HEAVY!r} if n in sys.modules])"
    done = python("-c", f"{code}\n{tail}")
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("LOADED", 1)[1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import moe_router",
        "from moe_router import Config, MoeRouterError, Workspace, __version__",
        "from moe_router.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from moe_router.cli import main\ntry: main(['build', '--help'])\nexcept SystemExit: pass",
        "from moe_router.cli import main\ntry: main(['init', '--json', '--workspace', 'W'])\nexcept SystemExit: pass",
    ],
    ids=["import", "light names", "help", "command help", "init"],
)
def test_nothing_heavy_is_loaded(code, tmp_path):
    assert loaded_after(code.replace("W", str(tmp_path)) if "'W'" in code else code) == []


def test_public_names_resolve_and_others_do_not():
    assert set(moe_router.__all__) <= set(dir(moe_router))
    for name in moe_router.__all__:
        assert getattr(moe_router, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = moe_router.nonsense


@pytest.mark.parametrize("start", [["cli.py"], ["-m", "moe_router"]], ids=" ".join)
def test_ways_to_start(start):
    shown = python(*start, "--help")
    assert shown.returncode == 0
    assert "train-experts" in shown.stdout
    wrong = python(*start, "--nope")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_the_wheel_installs_exactly_the_package(tmp_path):
    copy = tmp_path / "tree"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "moe_router", copy / "moe_router", ignore=skipped)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py", ".gitignore"):
        shutil.copyfile(ROOT / name, copy / name)
    (copy / "data").mkdir()
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist"), cwd=copy)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {name.split("/")[0] for name in names} == {"moe_router", f"moe_router-{version}.dist-info"}
    packed = {name.removeprefix("moe_router/embedded_base/") for name in names if "/embedded_base/" in name}
    assert packed == {path.name for path in (ROOT / "moe_router/embedded_base").iterdir()}
    assert "moe-router = moe_router.cli:main" in entry


def test_constraints_pin_every_dependency_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no local suffix, no path
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_says_early_what_is_missing(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    tried = subprocess.run(["make", "demo", "PYTHON=no-such-python"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tried.returncode != 0
    assert "Python 3.11" in tried.stderr
    assert not (tmp_path / ".venv").exists()
