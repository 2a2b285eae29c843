"""The site: it builds strictly and fetches nothing, its code runs, its symptoms are those of the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import torch
from experiments import experiment

from dfkd.inversion.objective import inversion_objective
from dfkd.inversion.recipe import InversionRecipe
from dfkd.pruning.sparsity import sparsity
from dfkd.stages import Runner
from dfkd.store import Store
from dfkd.tasks import TASKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def generated() -> ModuleType:
    """The script that the build runs."""
    pytest.importorskip("mkdocs", reason="needs the dependency group docs")
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated"] = module
    spec.loader.exec_module(module)
    return module


class Fetched(HTMLParser):
    """What a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(found.get("src") or "")
        if tag == "link":
            self.addresses.append(found.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="needs the dependency group docs")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(build, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_builds_strictly_and_fetches_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in fetched.addresses if re.match(r"(https?:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_the_site_has_its_generated_pages(site):
    options = (site / "options.html").read_text(encoding="utf-8")
    assert "distillation.feature_weight" in options and "a_f, weight of R_feature" in options
    assert "load_dreams" in (site / "python.html").read_text(encoding="utf-8")
    assert "What is refused now" in (site / "changes.html").read_text(encoding="utf-8")


def test_every_option_stands_with_its_default_and_meaning():
    module = generated()
    text = module.options_page()
    for group, recipe in module.RECIPES.items():
        for option in fields(recipe):
            row = re.search(rf"^\| `{group}\.{option.name}` \| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
            assert row and row[2].strip(), option.name
    assert "| `inversion.jitter` | `null` |" in text and "| `distillation.updates` | `1000` |" in text


def blocks(section: str) -> list[str]:
    """The Python of a section of the page on contributing."""
    text = (DOCS / "contributing.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    assert len(text.splitlines()) <= 40
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_block(section: str) -> ModuleType:
    """What the section's code defines, in a module of its own."""
    (source,) = blocks(section)
    module = ModuleType(f"page_{section.split()[-1]}")
    sys.modules[module.__name__] = module  # where dataclasses look for their module
    exec(compile(source, "contributing.md", "exec"), module.__dict__)
    return module


def test_the_pruning_method_of_the_page_prunes(teacher):
    run_block("A pruning method").prune_last_inputs(teacher, amount=0.5)
    assert 0.4 < sparsity(teacher) <= 0.5


def test_the_loss_of_the_page_is_summed(teacher):
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    with inversion_objective(teacher, InversionRecipe()) as plain:
        made = run_block("A loss").Saturated(teacher, plain.recipe, plain.records, None)
        colours = torch.rand(4, 3, 8, 8)
        assert set(made.priors(colours)) == {"grey"} and made.priors(colours)["grey"] > 0
        with_it = made.summed({"grey": torch.tensor(5.0)})["total"]
        torch.testing.assert_close(with_it, torch.tensor(0.5))
        assert "feature" in plain(images, labels)


def test_the_stage_of_the_page_is_made_once(tmp_path):
    made = experiment()
    dreams = TASKS["recovery"].plan(made)["dream"][0]
    page = run_block("A stage")
    runner = Runner(Store(tmp_path), made.options)
    all_of_it = runner.run(page.brightness_stage(dreams))
    again = Runner(Store(tmp_path), made.options)
    assert again.run(page.brightness_stage(dreams)).reused and not all_of_it.reused
    stage = page.brightness_stage(dreams, share=0.1)
    assert Runner(Store(tmp_path), made.options).run(stage).notes["brightness"] > all_of_it.notes["brightness"]


def messages() -> list[str]:
    """Every text in the package, with an ellipsis for what it fills in."""
    found = []
    for path in (ROOT / "dfkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]|%\.3g", "…", node.value))
    return found


SYMPTOMS = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
MESSAGES = messages()


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_every_symptom_is_a_message_of_the_code(symptom):
    pattern = ".*".join(re.escape(part) for part in symptom.split("…"))
    assert any(re.search(pattern, message, re.DOTALL) for message in MESSAGES)


def test_there_are_symptoms():
    assert len(SYMPTOMS) >= 30
