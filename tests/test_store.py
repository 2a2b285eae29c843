"""The store: one product per recipe, made once, checked whenever it is used."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running import FORKS

from dfkd.errors import ConfigError
from dfkd.store import MANIFEST, Store, product_key


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
    results = FORKS.Queue()
    processes = [FORKS.Process(target=_make_slowly, args=(str(tmp_path), results)) for _ in range(2)]
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
    assert f"dfkd store gc {older.root} --older" in caplog.text
    assert older.obtain("kind", {}, maker([])).reused


def test_what_is_there_is_used_without_writing_and_what_is_not_is_refused(tmp_path, read_only):
    made = Store(tmp_path / "store").obtain("kind", {"a": 1}, maker([]))
    with read_only(tmp_path / "store"):
        store = Store(tmp_path / "store")
        assert store.obtain("kind", {"a": 1}, maker([])).reused
        with pytest.raises(ConfigError, match=r"store must be a folder that can be written to.*no whole kind"):
            store.obtain("kind", {"a": 2}, maker([]))
    assert made.directory.is_dir()


def _hold(root: str, begun, go) -> None:
    def make(directory: Path):
        (directory / "half.txt").write_text("half")
        begun.put(os.getpid())
        go.get()
        (directory / "file.txt").write_text("product")
        return {"by": os.getpid()}

    Store(Path(root)).obtain("kind", {}, make)


@pytest.fixture
def holder(tmp_path):
    """A process that makes a product of the store, its number, and the queue that lets it end."""
    begun, go = FORKS.Queue(), FORKS.Queue()
    process = FORKS.Process(target=_hold, args=(str(tmp_path), begun, go))
    process.start()
    yield process, begun.get(timeout=60), go
    process.kill()
    process.join()


def test_who_waits_is_told_for_whom(tmp_path, holder, caplog):
    _, number, go = holder
    caplog.set_level("INFO")
    threading.Timer(1.0, go.put, [None]).start()
    product = Store(tmp_path).obtain("kind", {}, maker([]))
    assert product.reused and product.notes == {"by": number}
    assert f"process {number} on {socket.gethostname()} is making the same one; waiting for it." in caplog.text


def test_a_holder_that_died_is_named_and_its_product_continued(tmp_path, holder, caplog):
    process, number, _ = holder
    caplog.set_level("INFO")
    process.kill()
    process.join()
    calls: list[str] = []
    product = Store(tmp_path).obtain("kind", {}, maker(calls))
    assert calls and (product.directory / "half.txt").read_text() == "half"
    assert f"process {number} on {socket.gethostname()} ended before it had made it" in caplog.text


def test_where_locks_do_not_hold_the_first_product_counts(tmp_path, holder):
    """Two machines whose file system keeps `flock` to each of them: here, the lock's file is another one."""
    process, _, go = holder
    next((tmp_path / "kind").glob("*.lock")).unlink()
    first = Store(tmp_path).obtain("kind", {}, maker([]))
    go.put(None)
    process.join(60)
    assert process.exitcode == 0  # it found the first
    assert Store(tmp_path).obtain("kind", {}, maker([])).notes == first.notes == {"note": "product"}
    assert len(list((tmp_path / "kind").glob("*/"))) == 1


def test_a_product_that_was_moved_under_another_key_is_not_taken_for_it(tmp_path):
    store = Store(tmp_path)
    good, other = (store.obtain("kind", {"a": number}, maker([], str(number))) for number in (1, 2))
    shutil.rmtree(good.directory)
    other.directory.rename(good.directory)
    assert store.find("kind", {"a": 1}) is None
    assert store.obtain("kind", {"a": 1}, maker([], "1")).notes == {"note": "1"}
