"""Sources of real images: they fit the network's input, and say so at once when they cannot."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.errors import DataError
from dfkd.models import InputSpec
from dfkd.real_data import Purpose, RealImages, cifar, digits, image_folder, no_data
from dfkd.real_data.datamodule import RealDataModule, random_subset
from dfkd.real_data.labels import labels_of
from dfkd.training.data import Stream


def make_folder(root, classes=2, images=3, size=(10, 12), suffix="png", mode="RGB"):
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(images):
                shape = (*size, 3) if mode == "RGB" else size
                Image.fromarray(np.full(shape, 100 * label + index, np.uint8)).save(folder / f"{index}.{suffix}")
    return root


def spec(channels=3, classes=2, size=(10, 12)):
    return InputSpec((channels, *size), classes, (0.5,) * channels, (0.25,) * channels)


def test_digits_are_split_without_overlap_and_normalised(spec):
    source = digits(spec)
    train, test = source.open(Purpose.TEACHER_TRAINING), source.open(Purpose.EVALUATION)
    assert (len(train), len(test)) == (1437, 360)
    images = torch.stack([image for image, _ in train])
    assert images.shape[1:] == (1, 8, 8)
    assert abs(images.mean()) < 0.01 and abs(images.std() - 1) < 0.01
    seen = {image.numpy().tobytes() for image, _ in train}
    overlap = sum(image.numpy().tobytes() in seen for image, _ in test)
    assert overlap <= 2  # a few of the scans are identical


def test_an_image_folder_is_resized_and_normalised(tmp_path):
    source = image_folder(spec(size=(5, 6)), str(make_folder(tmp_path)))
    image, label = source.open(Purpose.EVALUATION)[5]
    assert image.shape == (3, 5, 6) and label == 1
    torch.testing.assert_close(image, torch.full((3, 5, 6), (102 / 255 - 0.5) / 0.25))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_colour_and_grey_images_become_what_the_network_takes(tmp_path, mode):
    root = str(make_folder(tmp_path, mode=mode))
    for channels in (1, 3):
        image, _ = image_folder(spec(channels), root).open(Purpose.EVALUATION)[0]
        assert image.shape == (channels, 10, 12)


def test_a_folder_whose_classes_have_other_names_in_its_test_folder_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "test" / "class1").rename(tmp_path / "test" / "dog")
    with pytest.raises(DataError, match=r"differ: class1 only in .*/train; dog only in .*/test"):
        image_folder(spec(), str(tmp_path))


def test_classes_named_by_numbers_are_said_to_be_in_the_order_of_text(tmp_path, caplog):
    for split in ("train", "test"):
        for label in range(11):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), label, np.uint8)).save(tmp_path / split / str(label) / "image.png")
    source = image_folder(spec(1, 11), str(tmp_path))
    assert source.class_names[:4] == ["0", "1", "10", "2"]
    assert "data.only=[0,1,3,4,5,6,7,8,9,10,2]" in caplog.text
    ordered = image_folder(spec(1, 11), str(tmp_path), only=[0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2])
    assert ordered.class_names == [str(label) for label in range(11)]
    images = ordered.open(Purpose.EVALUATION)
    assert all((image * 0.25 + 0.5).mean() * 255 == pytest.approx(label, abs=1e-3) for image, label in images)


def test_links_hidden_folders_and_files_that_are_no_images(tmp_path, caplog):
    make_folder(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "real" / split)
        (tmp_path / "real" / split / ".ipynb_checkpoints").mkdir()
        (tmp_path / "real" / split / "class0" / "notes.txt").write_text("mine")
    source = image_folder(spec(), str(tmp_path / "linked"))
    assert len(source.open(Purpose.EVALUATION)) == 6
    assert "1 files of" in caplog.text and "notes.txt" in caplog.text


def test_sources_know_the_names_of_their_classes(tmp_path):
    assert image_folder(spec(), str(make_folder(tmp_path))).class_names == ["class0", "class1"]
    assert digits(spec(1, 2, (8, 8)), only=[7, 2]).class_names == ["7", "2"]
    assert cifar(spec(3, 10, (32, 32))).class_names is None


def own_images(values, labels):
    return [(torch.full((1, 2, 2), value), label) for value, label in zip(values, labels, strict=True)]


def test_images_of_ones_own_are_known_by_what_they_hold_or_by_a_text():
    def identity(values, labels, **arguments):
        source = RealImages("mine", lambda split: own_images(values, labels), **arguments)
        return source.identity(Purpose.EVALUATION)

    assert identity([0.5, 1.0], [0, 1]) == identity([0.5, 1.0], [0, 1])
    assert identity([0.5, 1.0], [0, 1]) != identity([0.5, 0.9], [0, 1])
    assert identity([0.5, 1.0], [0, 1]) != identity([0.5, 1.0], [1, 0])
    names = {"class_names": ["cat", "dog"]}, {"class_names": ["dog", "cat"]}
    assert identity([0.5, 1.0], [0, 1], **names[0]) != identity([0.5, 1.0], [0, 1], **names[1])
    assert identity([0.5], [0], content="version 3") == identity([1.0], [0], content="version 3")
    assert identity([0.5], [0], content="version 3") != identity([0.5], [0], content="version 4")


def test_the_splits_have_identities_of_their_own(spec):
    source = digits(spec)
    assert source.identity(Purpose.TEACHER_TRAINING) == source.identity(Purpose.REAL_DATA_CONTROL)
    assert source.identity(Purpose.TEACHER_TRAINING) != source.identity(Purpose.EVALUATION)
    assert digits(spec).identity(Purpose.EVALUATION) == source.identity(Purpose.EVALUATION)
    order = list(range(9, -1, -1))
    assert digits(spec, only=order).identity(Purpose.EVALUATION) != source.identity(Purpose.EVALUATION)
    assert source.opened == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there is no image"),
        ([torch.zeros(1, 2, 2)], r"first item is a torch.float32 tensor \(1, 2, 2\)"),
        ([(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)], r"first item is \(a torch.uint8 tensor \(1, 2, 2\), int\)"),
        ([(torch.zeros(2, 2), 0)], "first item is"),
        ([(torch.zeros(1, 2, 2), 0.5)], "label of an image must be the number of its class, got 0.5"),
        ([(torch.zeros(3, 2, 2), 0)], r"the shape input\.image_shape=\[1, 2, 2\], but the first is \[3, 2, 2\]"),
        ([(torch.zeros(1, 2, 2), label) for label in (0, 1, 2)], r"input\.num_classes=2\), but they are from 0 to 2"),
        ([(torch.zeros(1, 2, 2), label) for label in (0, -1)], "from -1 to 0"),
        ([(torch.zeros(1, 2, 2), label) for label in (0, 1)], r"names 1 classes \(cat\), but the network has 2"),
    ],
)
def test_images_of_ones_own_that_are_none_are_found_by_the_check(items, message):
    source = RealImages("mine", lambda split: items, content="mine", class_names=["cat"])
    with pytest.raises(DataError, match=message):
        source.check(spec(1, 2, (2, 2)), Purpose.EVALUATION)


def test_test_images_alone_are_enough_to_score_on(tmp_path, caplog):
    root = make_folder(tmp_path / "photos")
    shutil.rmtree(root / "train")
    with caplog.at_level("INFO"):
        source = image_folder(spec(), str(root), per_class=2)
    assert "no real image is learned from" in caplog.text
    source.check(spec(), Purpose.EVALUATION)
    assert len(source.open(Purpose.EVALUATION)) == 6 and not source.has(Purpose.REAL_DATA_CONTROL)
    for purpose in (Purpose.TEACHER_TRAINING, Purpose.REAL_DATA_CONTROL, Purpose.PRIVACY_AUDIT):
        with pytest.raises(DataError, match=f"has no train images, which {purpose} needs"):
            source.check(spec(), purpose)
    with pytest.raises(DataError, match=r"share 6 images \(test\)"):
        source.require_disjoint(image_folder(spec(), str(make_folder(tmp_path / "others"))))


def test_nothing_learns_from_the_images_that_score_it(tmp_path):
    root = make_folder(tmp_path / "photos")
    (root / "linked").symlink_to(root / "test")
    for train in ("test", "linked", "../photos/test"):
        with pytest.raises(DataError, match="must be different folders"):
            image_folder(spec(), str(root), train=train)


def test_missing_empty_and_single_class_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        image_folder(spec(), str(tmp_path / "nowhere"))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="is empty"):
        image_folder(spec(), str(tmp_path / "empty"))
    with pytest.raises(DataError, match="single class"):
        image_folder(spec(), str(make_folder(tmp_path / "one", classes=1)))
    make_folder(tmp_path / "hollow")
    for path in (tmp_path / "hollow" / "test" / "class1").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="class1 holds no file that ends as images do"):
        image_folder(spec(), str(tmp_path / "hollow"))


@pytest.mark.parametrize("suffix", ["gif", "jfif", "JPE", "apng", "avif", "jp2", "tga", "dib"])
def test_every_format_that_pil_opens_is_an_image(suffix, tmp_path):
    source = image_folder(spec(), str(make_folder(tmp_path, suffix=suffix)))
    images = torch.stack([image for image, _ in source.open(Purpose.EVALUATION)])
    expected = (torch.tensor([0, 1, 2, 100, 101, 102]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images.mean((1, 2, 3)), expected, atol=0.05, rtol=0)  # some formats are lossy


def test_an_animation_is_refused_by_name(tmp_path):
    root = make_folder(tmp_path)
    frames = [Image.new("L", (10, 12), shade) for shade in (10, 200)]
    frames[0].save(root / "test" / "class0" / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"moving\.gif \(it holds 2 pictures"):
        image_folder(spec(), str(root)).check(spec(), Purpose.EVALUATION)


def test_a_folder_of_ones_home_is_found(tmp_path, monkeypatch):
    make_folder(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(image_folder(spec(), "~/photos").open(Purpose.EVALUATION)) == 6


def test_a_class_count_that_is_not_the_networks_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has 2 classes, but input\.num_classes is 7"):
        image_folder(spec(classes=7), str(make_folder(tmp_path)))
    with pytest.raises(DataError, match="digits has 10 classes"):
        digits(spec(1, 7, (8, 8)))
    with pytest.raises(DataError, match=r"data\.classes must be 10 or 100"):
        cifar(spec(), classes=7)
    assert no_data(spec()) is None


def test_cifar_is_read_from_torchvisions_files(tmp_path):
    # The layout that torchvision downloads, with made-up pixels; its checksums are those of the real files, so only
    # the refusal is real here: without a network the error says what to do.
    with pytest.raises(DataError, match=r"could not be downloaded.*data=none"):
        cifar(spec(3, 10, (32, 32)), root=str(tmp_path)).open(Purpose.EVALUATION)


def test_the_real_control_draws_by_seed(spec):
    dataset = digits(spec).open(Purpose.REAL_DATA_CONTROL)
    first, again, other = (random_subset(dataset, 100, seed).indices for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 100
    assert len(random_subset(dataset, 10_000, 0)) == len(dataset)


def test_the_data_module_shuffles_by_seed_and_pass(spec):
    dataset = digits(spec).open(Purpose.REAL_DATA_CONTROL)

    def batches(seed, consumed=0):
        data = RealDataModule(dataset, Stream(700, 4, seed))  # two batches an epoch
        data.load_state_dict({"consumed": consumed})
        return [labels.tolist() for _, labels in data.train_dataloader()]

    stream = batches(0)
    assert len(stream) == 4 and stream == batches(0) != batches(1)
    assert stream[:2] != stream[2:]
    assert batches(0, consumed=3) == stream[3:]


def test_some_classes_can_be_kept_and_are_numbered_anew():
    whole = digits(spec(1, 10, (8, 8))).open(Purpose.EVALUATION)
    some = digits(spec(1, 3, (8, 8)), only=[7, 2, 9]).open(Purpose.EVALUATION)
    labels = [int(label) for _, label in whole]
    assert len(some) == sum(labels.count(label) for label in (7, 2, 9))
    images = {image.numpy().tobytes(): label for image, label in whole}
    assert all([7, 2, 9][label] == images[image.numpy().tobytes()] for image, label in some)
    with pytest.raises(DataError, match=r"data\.only must be different classes of digits, each in \[0, 10\), got"):
        digits(spec(1, 2, (8, 8)), only=[3, 10])


def test_digits_of_other_classes_are_disjoint_and_those_of_the_same_are_not():
    old, new = (digits(spec(1, 5, (8, 8)), only=only) for only in (range(5), range(5, 10)))
    old.require_disjoint(new)
    with pytest.raises(DataError, match=r"share \d+ images .* new_data.only"):
        old.require_disjoint(digits(spec(1, 2, (8, 8)), only=[4, 7]))


def test_a_few_training_images_of_each_class_can_be_kept(tmp_path):
    few = digits(spec(1, 10, (8, 8)), per_class=7, seed=3)
    train = few.open(Purpose.TEACHER_TRAINING)
    assert labels_of(train).bincount().tolist() == [7] * 10
    assert [int(label) for _, label in train] == labels_of(train).tolist()
    assert len(few.open(Purpose.EVALUATION)) == 360
    whole = digits(spec(1, 10, (8, 8)))
    known = {image.numpy().tobytes() for image, _ in whole.open(Purpose.TEACHER_TRAINING)}
    assert all(image.numpy().tobytes() in known for image, _ in train)
    two = image_folder(spec(), str(make_folder(tmp_path)), only=[1, 0], per_class=2).open(Purpose.TEACHER_TRAINING)
    assert labels_of(two).tolist() == [0, 0, 1, 1]
    assert len(digits(spec(1, 3, (8, 8)), only=[1, 5, 6], per_class=4).open(Purpose.TEACHER_TRAINING)) == 12


def test_which_few_images_are_kept_has_an_identity_of_its_own():
    def identities(**options):
        source = digits(spec(1, 10, (8, 8)), **options)
        return source.identity(Purpose.TEACHER_TRAINING), source.identity(Purpose.EVALUATION)

    whole, few, other, more = (identities(**o) for o in ({}, {"per_class": 7}, {"per_class": 7, "seed": 1},
                                                         {"per_class": 8}))  # fmt: skip
    assert len({train for train, _ in (whole, few, other, more)}) == 4
    assert len({test for _, test in (whole, few, other, more)}) == 1
    assert identities(seed=5) == whole  # which does nothing without `per_class`
    with pytest.raises(DataError, match=r"data\.per_class must be a whole number, 0 or more, got -1"):
        identities(per_class=-1)
    with pytest.raises(DataError, match=r"data\.seed must be a whole number"):
        identities(per_class=1, seed=0.5)
