"""Sources of real images: they fit the network's input, and say so at once when they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.errors import DataError
from dfkd.models import InputSpec
from dfkd.real_data import Purpose, cifar, digits, image_folder, no_data
from dfkd.real_data.datamodule import RealDataModule, random_subset


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


def test_the_fingerprint_follows_the_images_and_not_the_place(tmp_path):
    first = image_folder(spec(), str(make_folder(tmp_path / "a")))
    moved = image_folder(spec(), str(make_folder(tmp_path / "b")))
    assert first.fingerprint == moved.fingerprint
    (tmp_path / "b" / "train" / "class0" / "new.png").write_bytes(b"x" * 100)
    assert image_folder(spec(), str(tmp_path / "b")).fingerprint != first.fingerprint


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
    with pytest.raises(DataError, match="class1 holds no image"):
        image_folder(spec(), str(tmp_path / "hollow"))


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
        data = RealDataModule(dataset, batch_size=700, batches=4, seed=seed)  # two batches a pass
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
