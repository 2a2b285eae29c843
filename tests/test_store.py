"""The store: one product per recipe, made once, checked whenever it is used."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dfkd.errors import ConfigError
from dfkd.store import MANIFEST, Store, product_key
from dfkd.store import main as store_command


def maker(calls: list[str], content: str = "product"):
    def make(directory: Path) -> dict[str, str]:
        calls.append(content)
        (directory / "file.txt").write_text(content)
        return {"note": content}

    return make


def test_a_product_is_made_once_and_found_again(tmp_path):
    calls: list[str] = []
    products = Store(tmp_path)
    first = products.obtain("kind", {"a": 1, "b": [2, 3]}, maker(calls))
    second = products.obtain("kind", {"b": [2, 3], "a": 1}, maker(calls))
    other = products.obtain("kind", {"a": 1, "b": [3, 2]}, maker(calls))
    assert calls == ["product"] * 2
    assert (first.reused, second.reused, other.reused) == (False, True, False)
    assert second.notes == {"note": "product"} and second.directory == first.directory != other.directory


def test_the_key_depends_on_kind_and_recipe_alone():
    assert product_key("a", {"x": 1, "y": 2}) == product_key("a", {"y": 2, "x": 1})
    assert len({product_key("a", {"x": 1}), product_key("b", {"x": 1}), product_key("a", {"x": 2})}) == 3


def test_a_failed_product_is_continued_where_it_was(tmp_path):
    def fail(directory: Path):
        (directory / "half.txt").write_text("done so far")
        raise ConfigError("stopped")

    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="stopped"):
        store.obtain("kind", {}, fail)

    def finish(directory: Path):
        return {"found": (directory / "half.txt").read_text()}

    assert store.obtain("kind", {}, finish).notes == {"found": "done so far"}


@pytest.mark.parametrize("damage", ["file", "missing file", "manifest", "no manifest", "notes"])
def test_a_damaged_product_is_made_again_with_a_warning(tmp_path, damage, caplog):
    calls: list[str] = []
    store = Store(tmp_path)
    directory = store.obtain("kind", {}, maker(calls)).directory
    if damage == "file":
        (directory / "file.txt").write_text("pr0duct")
    elif damage == "missing file":
        (directory / "file.txt").unlink()
    elif damage == "manifest":
        (directory / MANIFEST).write_text("{")
    elif damage == "no manifest":
        (directory / MANIFEST).unlink()
    else:
        manifest = json.loads((directory / MANIFEST).read_text())
        manifest["notes"]["note"] = "better"
        (directory / MANIFEST).write_text(json.dumps(manifest))
    again = store.obtain("kind", {}, maker(calls))
    assert not again.reused and len(calls) == 2
    assert again.notes == {"note": "product"} and (again.directory / "file.txt").read_text() == "product"
    assert "made again" in caplog.text


def _make_slowly(root: str, results) -> None:
    def make(directory: Path):
        time.sleep(1.0)
        (directory / "file.txt").write_text("product")
        return {}

    results.put(Store(Path(root)).obtain("kind", {}, make).reused)


def test_two_processes_that_want_the_same_product_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_make_slowly, args=(str(tmp_path), results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == [False, True]
    for process in processes:
        process.join()


def test_a_store_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="store must be a folder that can be written to"):
        Store(tmp_path / "file" / "store").check_writable()


def test_runs_that_start_together_do_not_refuse_the_store_they_share(tmp_path):
    with ThreadPoolExecutor(4) as runs:
        for started in [runs.submit(Store(tmp_path).check_writable) for _ in range(400)]:
            started.result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "many", "\0"])
def test_a_damaged_count_of_seconds_costs_the_count_and_nothing_else(tmp_path, content):
    """What a full disk leaves of a product in the making."""
    partial = tmp_path / "kind" / f"{product_key('kind', {})}.partial"
    partial.mkdir(parents=True)
    (partial / "seconds").write_text(content)
    product = Store(tmp_path).obtain("kind", {}, maker([]))
    assert product.notes == {"note": "product"} and product.seconds < 60


@pytest.fixture
def older(tmp_path) -> Store:
    """A store with a product of version 1, one of today, and one that is not finished."""
    store = Store(tmp_path)
    store.obtain("kind", {}, maker([]))
    product = tmp_path / "kind" / "0123"
    product.mkdir()
    (product / "file.txt").write_text("x" * 3000)
    (product / MANIFEST).write_text(json.dumps({"kind": "kind", "recipe": {}, "notes": {}, "files": {}}))
    (tmp_path / "kind" / "4567.partial").mkdir()
    return store


def test_products_of_an_older_version_are_told_once_and_never_used(older, caplog):
    older.tell_of_older()
    older.tell_of_older()
    assert caplog.text.count("holds 3.0 KiB of products that an older version made") == 1
    assert "--remove-older" in caplog.text
    assert older.obtain("kind", {}, maker([])).reused


def test_the_command_says_what_the_store_holds_and_removes_what_is_old(older, capsys):
    store_command([str(older.root)])
    said = capsys.readouterr().out
    assert "kind: 1, " in said and "kind, of an older version: 1, 3.0 KiB" in said and "kind, unfinished: 1" in said
    store_command([str(older.root), "--remove-older"])
    assert "Removed 3.0 KiB" in capsys.readouterr().out
    assert not (older.root / "kind" / "0123").exists() and older.obtain("kind", {}, maker([])).reused
    with pytest.raises(ConfigError, match="which is not there"):
        store_command([str(older.root / "nowhere")])
