"""The picture of the report's page, as Chromium shows it: `python docs/pictures.py` writes `docs/images/report.png`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dfkd.files import replacing
from dfkd.reporting.report import write_report

DOCS = Path(__file__).parent
STATE = "#sort=-recovered&filter=seed%3D0"


def main() -> None:
    """Take the picture."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("docs/pictures.py needs Chromium.")
    with tempfile.TemporaryDirectory() as temporary, replacing(DOCS / "images" / "report.png") as picture:
        write_report([DOCS / "results" / "resnet20"], Path(temporary))
        page = (Path(temporary) / "report.html").as_uri()
        # As root, as in most containers, Chromium has no sandbox.
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1500"]
        subprocess.run([browser, *flags, f"--screenshot={picture}", page + STATE], check=True, capture_output=True)


if __name__ == "__main__":
    main()
