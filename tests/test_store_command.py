"""`dfkd store ls|du|gc`: what is there, and what no run refers to."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import command, result_of
from test_store import maker, older  # noqa: F401 (a fixture)

from dfkd.errors import ConfigError
from dfkd.locking import locked
from dfkd.store import Store
from dfkd.store_command import main


@pytest.fixture
def stored(tmp_path) -> Store:
    """A store with a product that the run `runs/one` refers to, and one that no run does; both 1,000 bytes and more."""
    store = Store(tmp_path / "store")
    used, _ = (store.obtain("kind", {"a": number}, maker([], str(number) * 1000)) for number in (1, 2))
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "artifacts.json").write_text(json.dumps({"stage": f"kind/{used.key}"}))
    return store


def key(store: Store, number: int) -> str:
    product = store.find("kind", {"a": number})
    assert product is not None
    return product.key


def test_gc_lists_what_no_run_refers_to_and_removes_it_with_yes(stored, tmp_path, capsys):
    arguments = ["gc", str(stored.root), "--runs", str(tmp_path / "runs")]
    unused = key(stored, 2)
    main(arguments)
    said = capsys.readouterr().out
    assert unused in said and key(stored, 1) not in said and "Nothing was removed: add --yes." in said
    main([*arguments, "--yes"])
    assert "Removed 1 products" in capsys.readouterr().out
    assert stored.find("kind", {"a": 2}) is None and stored.find("kind", {"a": 1}) is not None
    assert not list(stored.root.glob(f"kind/{unused}*"))


def test_gc_leaves_what_a_process_is_making(stored, tmp_path, capsys):
    unused = key(stored, 2)
    with locked(stored.root / "kind" / f"{unused}.lock", lambda holder: None):
        main(["gc", str(stored.root), "--runs", str(tmp_path / "runs"), "--yes"])
    assert "1 are in the making and were left" in capsys.readouterr().out
    assert stored.find("kind", {"a": 2}) is not None


@pytest.mark.parametrize("damage", ["no run", "[" * 100_000, "[]", '{"a": '])
def test_gc_that_cannot_know_what_is_referred_to_removes_nothing(stored, tmp_path, damage):
    if damage == "no run":
        shutil.rmtree(tmp_path / "runs")
    else:
        (tmp_path / "runs" / "one" / "artifacts.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"--runs must be folders with runs|cannot be read"):
        main(["gc", str(stored.root), "--runs", str(tmp_path / "runs"), "--yes"])
    assert stored.find("kind", {"a": 2}) is not None


def test_gc_takes_no_folder_of_runs_for_an_empty_one(stored, tmp_path):
    """One of two is mistyped, or its disk is not mounted: what its runs refer to would be removed."""
    with pytest.raises(ConfigError, match=r"--runs must be folders with runs, got .*mistyped"):
        main(["gc", str(stored.root), "--runs", str(tmp_path / "runs"), str(tmp_path / "mistyped"), "--yes"])
    assert stored.find("kind", {"a": 2}) is not None


def test_ls_says_kind_key_age_size_and_run(stored, tmp_path, capsys):
    main(["ls", str(stored.root), "--runs", str(tmp_path / "runs")])
    lines = capsys.readouterr().out.splitlines()
    used, unused = (next(line for line in lines if key(stored, number) in line) for number in (1, 2))
    assert "finished" in used and "KiB" in used and " s " in used and "kind" in used
    assert "one" in used and "one" not in unused


def test_what_a_run_finds_out_anew_is_that_runs(stored, tmp_path, capsys):
    begun = tmp_path / "runs" / "one" / ".next"
    begun.mkdir()
    (begun / "artifacts.json").write_text(json.dumps({"stage": f"kind/{key(stored, 2)}"}))
    main(["ls", str(stored.root), "--runs", str(tmp_path / "runs")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert len(lines) == 2 and all("one" in line and ".next" not in line for line in lines)


def test_du_says_how_large_each_kind_is_and_gc_older_removes_what_is_old(older, capsys):  # noqa: F811
    main(["du", str(older.root)])
    said = capsys.readouterr().out
    assert "kind: 1, " in said and "kind, of an older version: 1, 3.0 KiB" in said and "kind, unfinished: 1" in said
    main(["gc", str(older.root), "--older", "--yes"])
    assert "Removed 1 products, 3.0 KiB" in capsys.readouterr().out
    assert not (older.root / "kind" / "0123").exists() and older.obtain("kind", {}, maker([])).reused
    with pytest.raises(ConfigError, match="which is not there"):
        main(["du", str(older.root / "nowhere")])


def test_all_that_a_real_run_made_is_referred_to_by_it_and_by_one_that_was_only_begun(finished, tmp_path):
    shutil.copytree(finished / "artifacts", tmp_path / "artifacts")
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    shutil.copy(finished / "run" / "artifacts.json", tmp_path / "runs" / "begun")
    assert set(result_of(finished)["artifacts"].items()) == set(
        json.loads((finished / "run" / "artifacts.json").read_text()).items()
    )
    stored = {str(path.parent.relative_to(tmp_path / "artifacts")) for path in tmp_path.rglob("artifact.json")}
    made = set(json.loads((finished / "run" / "artifacts.json").read_text()).values())
    said = command(["store", "gc"], tmp_path).stdout
    assert made <= stored and f"{len(stored - made)} products, " in said and "Nothing was removed" in said
