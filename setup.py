"""Which folders are shipped: everything under `dfkd`, and `conf`, at the top of the repository, as `dfkd.conf`.

The rest is in `pyproject.toml`, which cannot find packages by itself and map one of them elsewhere.
"""

from setuptools import find_namespace_packages, setup

packages = find_namespace_packages(include=["dfkd", "dfkd.*"])
configuration = ["dfkd.conf", *(f"dfkd.conf.{name}" for name in find_namespace_packages("conf"))]
setup(packages=packages + configuration, package_dir={"dfkd.conf": "conf"})
