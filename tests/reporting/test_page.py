"""The report's page: one file that needs nothing else, whatever the runs' files hold, and that sorts and filters."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import command
from PIL import Image

from dfkd.reporting.report import write_report

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RUNS = len(list((RESULTS / "resnet20").iterdir()))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMPTY = {"meta", "link", "img", "input", "br", "line", "circle"}


class Parsed(HTMLParser):
    """A page's elements, and the names in the rows of its table that are shown, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.words: list[str] = []
        self.plain: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop()[0] == tag

    def handle_data(self, text):
        inside = [tag for tag, _ in self.open]
        if inside and inside[-1] == "pre":
            self.plain.append(text)
        if not {"script", "style"} & set(inside):
            self.words.append(text)
        hidden = any("hidden" in attributes for _, attributes in self.open)
        if inside[-3:] == ["th", "a", "bdi"] and not hidden:
            self.rows.append(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folders: list[Path], out: Path) -> Parsed:
    write_report(folders, out)
    return Parsed((out / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_every_run_its_command_and_its_dreams(sweep, tmp_path):
    page = page_of([sweep / "sweep"], tmp_path)
    runs = sorted(path.parent.name for path in sweep.glob("sweep/*/result.json"))
    assert len(runs) == 6 and sorted(page.rows) == runs
    assert len(page.all("details")) == 6 == len(page.plain)
    assert all(shlex.split(line)[0] == "dfkd" and "experiment=demo" in line for line in page.plain)
    pictures = page.all("img")
    assert len(pictures) == 2  # each seed's dreams once, whoever learned from them
    assert all(str(picture["src"]).startswith("data:image/webp;base64,") for picture in pictures)
    warnings = [w for path in sweep.glob("sweep/*/result.json") for w in json.loads(path.read_text())["warnings"]]
    assert warnings and set(warnings) <= set(page.words)


def test_the_command_of_a_run_makes_it_again(sweep, tmp_path):
    run = next(path.parent for path in sweep.glob("sweep/*/result.json"))
    again = shlex.split((run / "command.txt").read_text())[1:]
    assert f"run_dir={run}" in again
    before = json.loads((run / "result.json").read_text())
    command([*again[:-1], f"store={sweep / 'artifacts'}", "run_dir=again"], tmp_path)
    after = json.loads((tmp_path / "again" / "result.json").read_text())
    assert after["artifacts"] == before["artifacts"] and after["recovered"] == before["recovered"]


def test_the_page_loads_nothing(tmp_path):
    page = page_of([RESULTS / "resnet20"], tmp_path)
    assert len(page.rows) == RUNS
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:image/"))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text


HOSTILE = "<script>document.title='taken'</script>\"'><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A report of runs whose files and folders have markup in every text."""
    run = tmp_path / "runs" / HOSTILE.replace("/", "\N{DIVISION SLASH}")
    shutil.copytree(RESULTS / "resnet20" / "cheap-90-seed0", run)
    result = json.loads((run / "result.json").read_text())
    result["warnings"] = [HOSTILE]
    result["choices"]["model"] = HOSTILE
    result["timing"]["recover"] = float("nan")
    (run / "result.json").write_text(json.dumps(result))
    (run / "command.txt").write_bytes(f"dfkd '{HOSTILE}' ".encode() + b"\xff")
    Image.new("RGB", (8, 8)).save(run / "dreams.png", "GIF")  # no picture of ours
    failed = tmp_path / "runs" / "failed"
    failed.mkdir()
    (failed / "status.json").write_text(json.dumps({"status": HOSTILE, "error": HOSTILE}))
    shutil.copytree(RESULTS / "resnet20" / "cheap-90-seed1", tmp_path / "runs" / "plain")
    write_report([tmp_path / "runs"], tmp_path / "report")
    return tmp_path / "report" / "report.html"


def test_markup_in_the_runs_files_is_text(hostile):
    page = Parsed(hostile.read_text(encoding="utf-8"))
    assert len(page.all("script")) == 2 and not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.words.count(HOSTILE) >= 3  # the warning, and what became of the run without a result
    assert page.plain == [f"dfkd '{HOSTILE}' \ufffd"]


def dumped(page: Path, tmp_path: Path, state: str = "") -> Parsed:
    """The page as it is in a browser after its scripts ran."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    # As root, as in most containers, Chromium has no sandbox.
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", f"--user-data-dir={tmp_path}/c"]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri() + state], text=True, capture_output=True, check=True, timeout=60
    )
    return Parsed(done.stdout)


def test_the_table_sorts_and_filters_in_a_browser(tmp_path):
    write_report([RESULTS / "resnet20"], tmp_path)
    page = dumped(tmp_path / "report.html", tmp_path, "#sort=-recovered&filter=PPR")
    assert page.rows == ["ppr-50-seed0", "ppr-75-seed0", "ppr-90-seed0"]
    assert f"3 of {RUNS} runs" in page.words
    assert [head["data-key"] for head in page.all("th") if head.get("aria-sort") == "descending"] == ["recovered"]
    assert len(page.all("svg")) == 3
    points = len(page.all("circle"))
    page = dumped(tmp_path / "report.html", tmp_path, "#sort=recovered")
    assert len(page.rows) == RUNS and page.rows[0] == "ppr-90-seed0" and len(page.all("circle")) > 2 * points
    unknown = dumped(tmp_path / "report.html", tmp_path, "#sort=-noise").rows
    assert unknown[:3] == ["live-50-seed0", "live-75-seed0", "live-90-seed0"]  # runs without the control come last


def test_markup_in_the_runs_files_does_nothing_in_a_browser(hostile, tmp_path):
    page = dumped(hostile, tmp_path, f"#filter={HOSTILE}")
    assert "dfkd report" in page.words and "taken" not in page.words
    assert not page.all("img") and "1 of 2 runs" in page.words  # whose model is called so
    page = dumped(hostile, tmp_path, "#sort=seconds")  # that of one of them is unknown
    assert page.rows[0] == "plain" and len(page.rows) == 2 and len(page.all("svg")) == 3
