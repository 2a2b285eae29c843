"""A folder is known by the content of its images, and those that cannot be used are found before the work."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from dfkd.errors import DataError
from dfkd.files import cache_folder
from dfkd.models import InputSpec
from dfkd.real_data import Purpose, image_folder
from dfkd.real_data.scan import scan

SPEC = InputSpec((1, 8, 8), 3, (0.5,), (0.25,))
TEST, TRAIN = Purpose.EVALUATION, Purpose.TEACHER_TRAINING


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scans"


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "abc":
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = generator.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    return tmp_path / "images"


def identity(folder, purpose=TEST, **arguments):
    return image_folder(SPEC, str(folder), **arguments).identity(purpose)


def grow_old(folder):
    """As if all files were written an hour ago; their change times are as they are."""
    for path in folder.rglob("*.png"):
        os.utime(path, (time.time() - 3600,) * 2)
    time.sleep(2.1)


def test_the_identity_follows_what_a_purpose_opens_and_not_the_place(folder, tmp_path):
    before = {purpose: identity(folder, purpose) for purpose in (TRAIN, TEST)}
    assert before[TRAIN] != before[TEST]
    folder.rename(tmp_path / "moved")
    assert before == {purpose: identity(tmp_path / "moved", purpose) for purpose in (TRAIN, TEST)}
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "moved" / "train" / "b" / "1.png")
    assert identity(tmp_path / "moved", TRAIN) != before[TRAIN] and identity(tmp_path / "moved", TEST) == before[TEST]


def rename(folder):
    (folder / "test" / "a" / "0.png").rename(folder / "test" / "a" / "9.png")


def move_to_another_class(folder):
    (folder / "test" / "a" / "0.png").rename(folder / "test" / "b" / "9.png")


def rename_a_class(folder):
    for split in ("train", "test"):
        (folder / split / "a").rename(folder / split / "z")


def change_one_pixel(folder):
    path = folder / "test" / "c" / "2.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def add(folder):
    (folder / "test" / "c" / "3.png").write_bytes((folder / "test" / "c" / "2.png").read_bytes())


@pytest.mark.parametrize("change", [rename, move_to_another_class, rename_a_class, change_one_pixel, add])
def test_every_change_of_a_test_image_is_another_identity(folder, change):
    before = identity(folder)
    change(folder)
    assert identity(folder) != before


def test_the_classes_that_are_kept_and_their_order_are_part_of_the_identity(folder):
    two = InputSpec((1, 8, 8), 2, (0.5,), (0.25,))
    kept = {tuple(only): image_folder(two, str(folder), only=only) for only in ([0, 1], [1, 0], [1, 2])}
    assert len({source.identity(TEST) for source in kept.values()}) == 3
    change_one_pixel(folder)  # of class c
    assert kept[0, 1].identity(TEST) == image_folder(two, str(folder), only=[0, 1]).identity(TEST)
    assert kept[1, 2].identity(TEST) != image_folder(two, str(folder), only=[1, 2]).identity(TEST)


def test_a_folder_is_read_once(folder, cache):
    grow_old(folder)
    before = identity(folder)
    assert identity(folder) == before
    mark(cache)
    assert read_again(folder) == []
    change_one_pixel(folder)
    assert read_again(folder) == ["c/2.png"]


def test_a_replacement_of_the_same_size_and_time_is_seen(folder, cache):
    path = folder / "test" / "a" / "0.png"
    for target in (path, folder / "other.bmp"):
        Image.fromarray(np.full((8, 8), target is path, np.uint8)).save(target, "BMP")
    grow_old(folder)
    before, status = identity(folder), path.stat()
    path.write_bytes((folder / "other.bmp").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert identity(folder) != before


def test_files_that_are_younger_than_two_seconds_are_not_trusted(folder, cache):
    grow_old(folder)
    change_one_pixel(folder)
    identity(folder)
    mark(cache)
    assert read_again(folder) == ["c/2.png"]


def test_a_cache_that_is_damaged_or_cannot_be_written_is_no_error(folder, cache, monkeypatch):
    before = identity(folder)
    grow_old(folder)
    identity(folder)
    for content in ("", "[1, 2]", '{"a/0.png": 3}', '{"a/0.png": [[1, 2, 3, 4], "x"]}', "\udcff"):
        for path in cache.iterdir():
            path.write_text(content, errors="surrogateescape")
        assert identity(folder) == before
    monkeypatch.setenv("DFKD_CACHE", str(folder / "train" / "a" / "0.png"))  # a file
    assert identity(folder) == before


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DFKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dfkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "dfkd")


def mark(cache):
    """Change the digests in the cache, so that what comes from there shows."""
    for path in cache.iterdir():
        entries = {name: [stamp, "cached"] for name, (stamp, _) in json.loads(path.read_text()).items()}
        path.write_text(json.dumps(entries))


def read_again(folder):
    """Which test images a scan reads, and not the cache."""
    names = sorted(str(path.relative_to(folder / "test")) for path in (folder / "test").glob("*/*.png"))
    return [name for name, digest in scan(folder / "test", names, 1).items() if digest != "cached"]


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def empty(path):
    path.write_bytes(b"")


def page(path):
    path.write_text("<!DOCTYPE html>\n<html></html>")


def dangling(path):
    path.unlink()
    path.symlink_to("/nowhere/at/all.png")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def gigantic(path):
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))


def broken(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 255  # in the compressed pixels, whose checksum then fails
    path.write_bytes(bytes(data))


DAMAGES = {
    cut: "damaged",
    empty: "no format that PIL knows",
    page: "no format that PIL knows",
    dangling: "a link to nothing",
    pipe: "no file",
    gigantic: "more than 89,478,485 pixels",
    broken: "damaged",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_used_is_named_by_the_check(folder, damage):
    damage(folder / "test" / "b" / "1.png")
    source = image_folder(SPEC, str(folder))
    source.check(SPEC, TRAIN)
    with pytest.raises(DataError, match=rf"1 of 9 images in .*/test cannot be used: b/1.png \(.*{DAMAGES[damage]}"):
        source.check(SPEC, TRAIN, TEST)
    if damage is not pipe:  # which nobody can open
        with pytest.raises(DataError, match=r"b/1.png cannot be used"):
            list(source.open(TEST))


def test_all_that_cannot_be_used_is_counted(folder):
    for path in folder.glob("test/*/*.png"):
        cut(path)
    with pytest.raises(DataError, match="9 of 9 images .* and 4 more"):
        image_folder(SPEC, str(folder)).check(SPEC, TEST)


def test_names_that_are_no_text_are_read_and_named(folder):
    path = folder / "test" / "b" / "1.png"
    odd = os.fsencode(path.parent) + b"/caf\xe9.png"
    os.rename(path, odd)  # noqa: PTH104 (the name is no text)
    image_folder(SPEC, str(folder)).check(SPEC, TEST)
    with open(odd, "wb"):  # noqa: PTH123
        pass
    with pytest.raises(DataError, match=r"b/caf\\udce9.png") as error:
        image_folder(SPEC, str(folder)).check(SPEC, TEST)
    str(error.value).encode("utf-8")


def test_what_a_scan_that_failed_has_read_is_not_read_again(folder, cache):
    cut(folder / "test" / "c" / "2.png")
    grow_old(folder)
    with pytest.raises(DataError):
        identity(folder)
    mark(cache)
    with pytest.raises(DataError, match="1 of 9"):
        identity(folder)
    (folder / "test" / "c" / "2.png").write_bytes((folder / "test" / "c" / "1.png").read_bytes())
    assert read_again(folder) == ["c/2.png"]


def test_folders_of_the_same_classes_are_told_by_their_images(folder, tmp_path):
    two = InputSpec((1, 8, 8), 2, (0.5,), (0.25,))
    sources = {name: image_folder(two, str(folder), only=only) for name, only in {"ab": [0, 1], "bc": [1, 2]}.items()}
    with pytest.raises(DataError, match=r"share 3 images \(train\), so that some of their classes are the same"):
        sources["ab"].require_disjoint(sources["bc"])
    shutil.copytree(folder, tmp_path / "other")
    for path in (tmp_path / "other").rglob("*.png"):
        Image.fromarray(np.array(Image.open(path)) // 2).save(path)
    image_folder(SPEC, str(folder)).require_disjoint(image_folder(SPEC, str(tmp_path / "other")))
