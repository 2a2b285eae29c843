"""The package as users install it: complete, with its configuration, and usable from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_built_package_runs_from_another_folder(tmp_path):
    target = tmp_path / "site"
    # From a copy: setuptools builds in the source tree, and the folder `build` there would be shipped again.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "docs", "runs"))
    # The wheel is built from the source archive: that is complete, too.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    built = subprocess.run(build, check=True, text=True, capture_output=True)
    assert "absent from the `packages` configuration" not in built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, text=True, capture_output=True)
    (tmp_path / "elsewhere").mkdir()
    code = "import dfkd, dfkd.conf; print(dfkd.__file__, dfkd.conf.__file__); from dfkd.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--cfg", "job"],
        cwd=tmp_path / "elsewhere", env={**os.environ, "PYTHONPATH": str(target)}, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    first, *configuration = done.stdout.splitlines()
    assert first.count(str(target)) == 2
    assert "  amount: 0.95" in configuration
    shipped = {str(path.relative_to(target / "dfkd" / "conf")) for path in (target / "dfkd" / "conf").rglob("*.yaml")}
    assert shipped == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {str(path.relative_to(target / "dfkd")) for path in (target / "dfkd").rglob("*.py")}
    assert modules - {"conf/__init__.py"} == {
        str(path.relative_to(ROOT / "dfkd")) for path in (ROOT / "dfkd").rglob("*.py")
    }
    page = {path.name for path in (target / "dfkd" / "reporting" / "html").iterdir()}
    assert page == {"page.html", "page.css", "page.js"}
    assert (target / "dfkd" / "py.typed").is_file()
    said = subprocess.run(
        [str(target / "bin" / "dfkd"), "--help"],
        cwd=tmp_path / "elsewhere", env={**os.environ, "PYTHONPATH": str(target)}, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    assert "dfkd report DIR..." in said.stdout and "experiment=" in said.stdout
