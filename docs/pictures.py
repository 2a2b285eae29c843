"""The pictures of what people see: `python docs/pictures.py` writes `report.png` and `run.svg` into `docs/images`.

The report's page as Chromium shows it, and the terminal of a whole demo, which takes two minutes.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dfkd.files import replacing, write_text
from dfkd.reporting.report import write_report

DOCS = Path(__file__).parent
STATE = "#sort=-recovered&filter=seed%3D0"
RUN = ["experiment=demo", "run_dir=runs/demo"]
COLUMNS = 120


def report() -> None:
    """Take the picture of the report's page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("docs/pictures.py needs Chromium.")
    with tempfile.TemporaryDirectory() as temporary, replacing(DOCS / "images" / "report.png") as picture:
        write_report([DOCS / "results" / "resnet20"], Path(temporary))
        page = (Path(temporary) / "report.html").as_uri()
        # As root, as in most containers, Chromium has no sandbox.
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1500"]
        subprocess.run([browser, *flags, f"--screenshot={picture}", page + STATE], check=True, capture_output=True)


def terminal() -> None:
    """Run the demo, and draw what it printed; moments of its progress that a terminal would overwrite are left out."""
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(
            [sys.executable, "-m", "dfkd", *RUN], check=True, capture_output=True, text=True, cwd=temporary,
            env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
        )  # fmt: skip
    printed = done.stdout.replace(f"{temporary}/", "")
    lines = [line for line in printed.splitlines() if not re.search(r" of \d+ \w+, .* left", line)]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ dfkd {' '.join(RUN)}", style="bold"))
    console.print(Text.from_ansi("\n".join(lines)))
    fonts_of_others = r',\s*url\("https://[^"]*"\) format\("\w+"\)'
    write_text(DOCS / "images" / "run.svg", re.sub(fonts_of_others, "", console.export_svg(title="dfkd")))


if __name__ == "__main__":
    report()
    terminal()
