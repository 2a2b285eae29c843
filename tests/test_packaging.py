"""The package as users install it: complete, with its configuration, and usable from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_installed_package_runs_from_another_folder(tmp_path):
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(ROOT)], check=True
    )
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


def test_every_folder_of_the_package_is_shipped():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {f"dfkd.{path.parent.name}" for path in (ROOT / "dfkd").glob("*/__init__.py")}
    assert set(listed) == folders | {"dfkd", "dfkd.conf"}
