"""Hostile files of every format that is read: refused with a reason, and nothing in them is run. See docs/safety.md."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, command
from payload import RAN, Payload
from PIL import Image
from safetensors.torch import save

from dfkd import config
from dfkd.deployment.onnx_file import OnnxFile
from dfkd.dreams.bank import DreamBank
from dfkd.errors import ArtifactError, ConfigError, DataError, DfkdError, WeightsError
from dfkd.files import load_tensors, save_tensors
from dfkd.inversion.checkpoint import BatchCheckpoint
from dfkd.models import CifarResNet, InputSpec, load_weights
from dfkd.models.student_file import load_student
from dfkd.models.weight_files import read_weights
from dfkd.models.weights import load_teacher_weights
from dfkd.real_data import Purpose, cifar, image_folder
from dfkd.reporting.report import write_report
from dfkd.reporting.run_directory import product_of
from dfkd.store import MANIFEST, Store, _digest, product_key

pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_the_payload_would_run():
    pickle.loads(pickle.dumps(Payload()))
    Path(RAN).rmdir()


def torch_file(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def squeezed(content: bytes) -> bytes:
    """A PyTorch file with its records compressed, which PyTorch reads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry.filename))
    return buffer.getvalue()


class Huge:
    """Takes ten terabytes when unpickled, by what is allowed there."""

    def __reduce__(self):
        return (bytearray, (10**13,))


STATE = {"conv1.weight": torch.zeros(4, 3, 3, 3)}
HOSTILE_WEIGHTS = {
    "a zip with a pickle": torch_file({"state_dict": STATE, "extra": Payload()}),
    "the old format": torch_file({"state_dict": STATE, "extra": Payload()}, _use_new_zipfile_serialization=False),
    "a bare pickle": pickle.dumps(Payload()),
    "a pickle of protocol 0": pickle.dumps(Payload(), protocol=0),
    "a numpy file": (lambda b: (np.save(b, np.array([Payload()], dtype=object)), b.getvalue())[1])(io.BytesIO()),
    "a zip bomb": squeezed(torch_file({"conv1.weight": torch.zeros(2**24)})),
    "an object of ten terabytes": torch_file({"conv1.weight": Huge()}),
    "a cut zip": torch_file(STATE)[:700],
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", HOSTILE_WEIGHTS)
def test_weights_that_would_run_code_or_fill_the_memory_are_refused(what, suffix):
    Path(f"weights{suffix}").write_bytes(HOSTILE_WEIGHTS[what])
    with pytest.raises(WeightsError, match="teacher.weights"):
        load_weights(CifarResNet(8, width=4), f"weights{suffix}")


def test_weights_that_only_look_large_are_read_without_being_unfolded():
    Path("w.pt").write_bytes(torch_file({"conv1.weight": torch.zeros(1).expand(10**12)}))
    with pytest.raises(WeightsError, match="of another shape: conv1.weight"):
        load_weights(CifarResNet(8, width=4), "w.pt")


def test_a_checkpoint_that_holds_itself_ends():
    endless: dict = {"model": STATE}
    endless["state_dict"] = endless
    Path("w.pt").write_bytes(torch_file(endless))
    with pytest.raises(WeightsError, match="missing"):
        load_weights(CifarResNet(8, width=4), "w.pt")


def test_a_file_in_pytorchs_cache_of_published_weights_is_not_unpickled(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "cache")
    Path("cache/hub/checkpoints").mkdir(parents=True)
    Path("cache/hub/checkpoints/resnet18-f37072fd.pth").write_bytes(torch_file({"extra": Payload()}))
    model = config.get_object("torchvision.models.resnet18")()
    with pytest.raises(WeightsError, match="could not be had"):
        load_teacher_weights(model, "torchvision:IMAGENET1K_V1", {"name": "resnet18"})


def test_batches_of_cifar_that_are_not_the_published_ones_are_not_unpickled(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # so that nothing can be downloaded in their place
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Payload()))
    images = cifar(InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(DataError, match="could not be downloaded"):
        images.open(Purpose.EVALUATION)


@pytest.mark.parametrize("what", ["a payload", "a bomb"])
def test_a_checkpoint_of_a_training_in_a_store_is_not_unpickled(what, finished):
    content = torch_file({"global_step": 3, "extra": Payload()})
    if what == "a bomb":
        content = squeezed(torch_file({"global_step": 3, "extra": torch.zeros(2**24)}))
    identity = json.loads((finished / "run" / "artifacts.json").read_text())["teacher"]
    partial = Path("artifacts") / f"{identity}.partial"
    partial.mkdir(parents=True)
    (partial / "resume.ckpt").write_bytes(content)
    said = command([*TINY, "stage=teacher", "run_dir=run"], Path.cwd()).stdout
    assert "resume.ckpt is damaged" in said and "this training starts again" in said
    kept = (finished / "artifacts" / identity / "weights.safetensors").read_bytes()
    assert (Path("artifacts") / identity / "weights.safetensors").read_bytes() == kept


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int = 0, stop: int = 16, shape=(4,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


LIES = {
    "a header longer than the file": safetensors({"a": entry()}, bytes(16), 10**6),
    "a header of 2^63 bytes": safetensors({"a": entry()}, bytes(16), 2**63),
    "a header that is no JSON": safetensors(b"{" * 40),
    "a header nested a hundred thousand times": safetensors(b'{"a":' * 100_000),
    "data that ends beyond the file": safetensors({"a": entry(0, 160, (40,))}, bytes(16)),
    "data that begins beyond the file": safetensors({"a": entry(1000, 1016)}, bytes(16)),
    "tensors that overlap": safetensors({"a": entry(), "b": entry(8, 24)}, bytes(24)),
    "a gap that is described by nothing": safetensors({"a": entry()}, bytes(64)),
    "a shape of more than the data": safetensors({"a": entry(shape=(2**40,))}, bytes(16)),
    "a shape that overflows": safetensors({"a": entry(shape=(2**62, 2**62))}, bytes(16)),
    "a negative shape": safetensors({"a": entry(shape=(-4,))}, bytes(16)),
    "a type of another size": safetensors({"a": entry(dtype="F64")}, bytes(16)),
    "a type that is not there": safetensors({"a": entry(dtype="PICKLE")}, bytes(16)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie):
    Path("w.safetensors").write_bytes(LIES[lie])
    with pytest.raises(WeightsError, match="teacher.weights"):
        read_weights(Path("w.safetensors"), "teacher.weights")
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_tensors(Path("w.safetensors"))


@pytest.mark.parametrize("envelope", ["[]", "[" * 100_000, "{}", '{"notes": 3, "sha256": 4}', "null"])
def test_a_products_notes_that_are_none_are_refused(envelope):
    Path("w.safetensors").write_bytes(save({"a": torch.zeros(4)}, metadata={"dfkd": envelope}))
    with pytest.raises(ArtifactError):
        load_tensors(Path("w.safetensors"))


@pytest.mark.parametrize(
    "notes",
    [
        [1, 2],
        {"packed": {"conv1.weight": [10**6, 10**6]}},
        {"packed": {"nothing": [3]}},
        {"packed": {"conv1.weight": "x"}},
        {"teacher_shapes": {"conv1.weight": [4, 3, 3, 3]}},
        {"teacher_channels": {"bn1": {"a": 1}}},
    ],
)
def test_a_students_notes_that_lie_are_refused(notes):
    """With a checksum that is right: whoever writes a file can compute one."""
    model = CifarResNet(8, width=4)
    state = model.state_dict()
    if "packed" in notes:
        state |= {"conv1.weight": torch.zeros(3), "conv1.weight.present": torch.zeros(2, dtype=torch.uint8)}
    elif "teacher_shapes" in notes:
        del state["conv1.weight"]
    save_tensors(Path("student.safetensors"), state, notes)
    with pytest.raises(DfkdError, match="student.safetensors"):
        load_student("student.safetensors", model)


def test_a_batch_of_dreams_and_a_checkpoint_of_one_that_hold_something_else_are_made_again(caplog):
    bank = DreamBank(Path("bank"))
    save_tensors(bank.path(0), {"weights": torch.zeros(3)}, [])
    save_tensors(bank.checkpoint(1), {"__class__": torch.zeros(3)}, {"stretch": 0})
    assert bank.missing(1) == [0] and not bank.path(0).exists()
    assert BatchCheckpoint(bank.checkpoint(1), 60).load(torch.device("cpu")) is None
    assert caplog.text.count("again") == 2


def manifest(**changed) -> str:
    content = {"version": 4, "kind": "kind", "determined_by": {}, "notes": {}, "seconds": 1.0, "files": {}} | changed
    return json.dumps(content | {"checksum": _digest(content)})


HOSTILE_MANIFESTS = {
    "no JSON": "\0",
    "a list": "[]",
    "nested a hundred thousand times": "[" * 100_000,
    "a number of a million digits": '{"version": ' + "9" * 1_000_000 + "}",
    "a file elsewhere": manifest(files={"../../../secret.txt": "0" * 64}),
    "a file by its full path": manifest(files={"/etc/hostname": "0" * 64}),
    "a pipe": manifest(files={"pipe": "0" * 64}),
    "a link that leads out": manifest(files={"link": "0" * 64}),
    "files that are no mapping": manifest(files=[1]),
    "notes that are none": manifest(notes=3),
    "another product": manifest(determined_by={"a": 1}),
}


@pytest.mark.parametrize("what", HOSTILE_MANIFESTS)
def test_a_manifest_of_another_hand_is_refused_and_names_in_it_lead_nowhere(what, caplog):
    Path("secret.txt").write_text("not for anyone")
    product = Path("store/kind") / product_key("kind", {})
    product.mkdir(parents=True)
    (product / "link").symlink_to(Path("secret.txt").resolve())
    os.mkfifo(product / "pipe")
    (product / MANIFEST).write_text(HOSTILE_MANIFESTS[what])
    assert Store(Path("store")).find("kind", {}) is None
    made = Store(Path("store")).obtain("kind", {}, lambda directory: {"made": 1})
    assert made.notes == {"made": 1} and "It is made again." in caplog.text
    assert Path("secret.txt").read_text() == "not for anyone"


@pytest.mark.parametrize("identity", ["../../secret/0123", "dreams/../../x", "/etc/0", "dreams/0123\n", "", "dreams"])
def test_a_result_cannot_name_a_folder_outside_of_the_store(identity, finished):
    shutil.copytree(finished / "run", "run")
    result = json.loads(Path("run/result.json").read_text())
    result["artifacts"]["dream"] = identity
    Path("run/result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="store must hold"):
        product_of(Path("run"), "dream", finished / "artifacts")


HOSTILE_JSON = ["", "\0", "[]", "3", "{}", "[" * 100_000, '{"artifacts": {"recover": {}}}', '{"status": {"a": []}}']


@pytest.mark.parametrize("content", HOSTILE_JSON)
@pytest.mark.parametrize("name", ["result.json", "status.json"])
def test_a_report_lists_a_run_whose_files_are_of_another_hand_and_goes_on(name, content, finished):
    for run in ("good", "bad"):
        shutil.copytree(finished / "run", Path("runs") / run)
    if name == "status.json":
        Path("runs/bad/result.json").unlink()
    (Path("runs/bad") / name).write_text(content)
    text = write_report(["runs"], Path("report"))
    assert "1 finished runs" in text and "1 runs have no result" in text and "runs/bad" in text


def test_what_a_run_says_of_itself_stays_within_its_cell_of_a_report():
    Path("runs/bad").mkdir(parents=True)
    said = "no | column\n# no heading \x1b[2J"
    Path("runs/bad/status.json").write_text(json.dumps({"status": "failed", "error": said}))
    assert r"| no \| column\n# no heading \x1b[2J |" in write_report(["runs"], Path("report"))


def png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images():
    for split in ("train", "test"):
        for name in ("a", "b"):
            Path("images", split, name).mkdir(parents=True)
            Path("images", split, name, "1.png").write_bytes(picture())
    return Path("images")


SPEC = InputSpec((3, 8, 8), 2, (0.5,) * 3, (0.5,) * 3)
HOSTILE_IMAGES = {
    "a bomb of pixels": (png(60_000, 60_000), "more than"),
    "one that is cut": (picture()[:150], "damaged"),
    "PostScript, which PIL has run": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file\n",
        "no format",
    ),
    "a pickle": (pickle.dumps(Payload()), "no format"),
}


@pytest.mark.parametrize("what", HOSTILE_IMAGES)
def test_an_image_that_is_a_trap_is_named_before_the_work(what, images):
    content, reason = HOSTILE_IMAGES[what]
    (images / "test" / "b" / "2.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"b/2\.png.*{reason}"):
        image_folder(SPEC, str(images)).check(SPEC, Purpose.EVALUATION)


def test_names_of_images_and_links_lead_nowhere_else(images):
    Path("secret.txt").write_text("planted-secret")
    folder = images / "test" / "b"
    (folder / "link.png").symlink_to(Path("secret.txt").resolve())
    (folder / "back").symlink_to(folder.resolve())  # in a circle
    (folder / "..\n\x1b[2J.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        image_folder(SPEC, str(images)).check(SPEC, Purpose.EVALUATION)
    said = str(refused.value)
    assert r"b/..\n\x1b[2J.png" in said and "link.png" in said and "2 of 4 images" in said
    assert "planted-secret" not in said and "\n" not in said


def onnx_file(location: str) -> bytes:
    """An ONNX file whose weights are said to lie in the file `location`."""
    from onnx import TensorProto, helper

    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("images", "logits")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "w"], ["logits"])], "g", ports[:1], ports[1:], [weights]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", pickle.dumps(Payload()), onnx_file("../secret.bin"), onnx_file("/etc/hostname"), b"\x0a" * 10_000],
    ids=["empty", "cut", "pickle", "weights outside", "weights by full path", "noise"],
)
def test_an_onnx_file_is_run_whole_or_not_at_all(content):
    Path("secret.bin").write_bytes(bytes(16))
    Path("place").mkdir()
    Path("place/student.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="no ONNX file that onnxruntime runs"):
        OnnxFile(Path("place/student.onnx"))
