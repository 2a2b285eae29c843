"""Pages of the site that are made from other files, by the build: the options from the recipes, and the changes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.incremental import IncrementalRecipe
from dfkd.inversion.recipe import InversionRecipe
from dfkd.quantization import QuantizationRecipe
from dfkd.streaming import StreamingRecipe
from dfkd.training.fit import TrainerOptions
from dfkd.training.teacher import TeacherRecipe

RECIPES = {
    "inversion": InversionRecipe,
    "distillation": DistillationRecipe,
    "quantization": QuantizationRecipe,
    "streaming": StreamingRecipe,
    "incremental": IncrementalRecipe,
    "teacher.training": TeacherRecipe,
    "trainer": TrainerOptions,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs: adds `options.md` and `changes.md`."""
    changes = Path(config.config_file_path).parent / "CHANGELOG.md"
    for name, text in (("options.md", options_page()), ("changes.md", changes.read_text(encoding="utf-8"))):
        files.append(File.generated(config, name, content=text))
    return files


def options_page() -> str:
    """A section for each recipe, a row for each of its options."""
    sections = [
        "# Options",
        "Every option of a recipe, with its default. A choice of a group (`inversion=ppr`) sets several of them;"
        " `dfkd OPTIONS --cfg job` prints what a run would have. An option with a wrong value is refused before the"
        " work starts. Those of models, data and pruning are the arguments of what `_target_` names.",
    ]
    for group, recipe in RECIPES.items():
        summary, meanings = cleandoc(recipe.__doc__ or "").splitlines()[0], documented(recipe)
        rows = [f"| `{group}.{o.name}` | `{_default(o)}` | {meanings[o.name]} |" for o in fields(recipe)]
        sections.append("\n".join([f"## {group}", "", summary, "", "| option | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(sections) + "\n"


def documented(recipe: type) -> dict[str, str]:
    """What the docstrings of a recipe and its bases say of each attribute; a subclass's own word counts."""
    found: dict[str, str] = {}
    for cls in reversed(recipe.__mro__):
        found |= dict(_attributes(cleandoc(cls.__doc__ or "")))
    return found


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    section = docstring.partition("Attributes:\n")[2].split("\n\n")[0]
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {6,}.*)*)", section, re.MULTILINE):
        for name in names.split(", "):
            yield name, " ".join(text.split()).replace("|", "\\|")


def _default(option: Field[Any]) -> str:
    value = option.default_factory() if option.default_factory is not MISSING else option.default
    if value is MISSING:
        return "must be given"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) or '""'
