"""A stage as a value: what it is made from, how, and the key that follows.

A stage has a name, a kind of product, a recipe (a frozen dataclass), named inputs and a function `make`, which is
handed these and nothing else. The key of its product is derived here, by one function, from the same recipe and inputs:
what `make` can read is what the key names, so that a product cannot be taken for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from dfkd.errors import MemoryShortageError, is_memory_shortage
from dfkd.store import Product, Store, product_key
from dfkd.training.fit import TrainerOptions, Workplace
from dfkd.training.metrics import Metrics

REMEDY = (
    "What was finished is kept. Lower inversion.batch_size where dreams are made, distillation.batch_size where a "
    "student learns, teacher.training.batch_size where a teacher does; or free memory and run the same command again."
)

Inputs = Mapping[str, Any]
Notes = dict[str, Any]


class Source(Protocol):
    """An input that is no stage: a network's code, a file, a data set."""

    def identity(self) -> Any:
        """What tells it from any other, as plain JSON: its content, never its path or name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a stage. Subclasses add what it needs.

    Attributes:
        seed: of everything random.
        precision: as in `TrainerOptions`; a stage that leaves it alone computes in single precision.
    """

    seed: int = 0
    precision: str = "32-true"


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a run.

    Attributes:
        name: in the run, for instance `recover`; for people, and no part of the key.
        kind: of the product, for instance `recovered`.
        recipe: the settings.
        make: makes the product in `workplace.directory` from `(recipe, inputs, workplace)` and returns notes as plain
            JSON. In `inputs` it finds a `Product` for each stage, and every other source as it is.
        inputs: stages and sources, by the name under which `make` finds them.
    """

    name: str
    kind: str
    recipe: Recipe
    make: Callable[[Any, Inputs, Workplace], Notes]
    inputs: Mapping[str, Stage | Source] = field(default_factory=dict)

    @cached_property
    def determined_by(self) -> dict[str, Any]:
        """All that determines the product, as plain JSON."""
        return {
            "recipe": plain(self.recipe),
            "inputs": {name: source.identity() for name, source in self.inputs.items()},
        }

    def identity(self) -> str:
        """The product's kind and key, as an input of later stages."""
        return f"{self.kind}/{product_key(self.kind, self.determined_by)}"


def plain(value: Any) -> Any:
    """A recipe as plain JSON: dataclasses by name and field, what has an `identity` by that.

    Fields that are None are left out: they do nothing, and an option that is added later changes no key by its absence.
    """
    if hasattr(value, "identity"):
        return plain(value.identity())
    if is_dataclass(value):
        options = {each.name: plain(getattr(value, each.name)) for each in fields(value)}
        return {"recipe": type(value).__name__} | {
            name: option for name, option in options.items() if option is not None
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


@dataclass
class Runner:
    """Makes stages whose products are not in the store.

    Attributes:
        store: where products are found and kept.
        options: where to compute; the precision is each recipe's.
        metrics: told the histories, as they arise or of products that were found.
        products: of the stages that were run, by name.
    """

    store: Store
    options: TrainerOptions = field(default_factory=TrainerOptions)
    metrics: Metrics = field(default_factory=Metrics)
    products: dict[str, Product] = field(default_factory=dict)

    def run(self, stage: Stage) -> Product:
        """The product of a stage, and before it those of the stages that it is made from."""
        if stage.name not in self.products:
            inputs = {
                name: self.run(source) if isinstance(source, Stage) else source for name, source in stage.inputs.items()
            }
            options = replace(self.options, precision=stage.recipe.precision)

            def make(directory: Path) -> Notes:
                try:
                    return stage.make(stage.recipe, inputs, Workplace(directory, options, self.metrics, stage.name))
                except (RuntimeError, MemoryError) as error:
                    if is_memory_shortage(error):
                        raise MemoryShortageError(f"{stage.name}: memory ran out ({error}). {REMEDY}") from error
                    raise

            product = self.store.obtain(stage.kind, stage.determined_by, make)
            if product.reused:
                for name, history in histories(stage.name, product).items():
                    self.metrics.replay(name, history)
            self.products[stage.name] = product
        return self.products[stage.name]


def histories(name: str, product: Product) -> dict[str, list[dict[str, float]]]:
    """The rows that were logged while a stage was made, by the name they were logged under."""
    noted = {name: product.notes.get("history", []), "stream": product.notes.get("stream", [])}
    return {key: rows for key, rows in noted.items() if rows}
