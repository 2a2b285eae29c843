"""A student that learns from its teacher: on dreams, on dreams that are made meanwhile, or on noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from dfkd.distillation.recipe import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamBank, DreamDataModule, Dreams
from dfkd.evaluation.controls import noise_images, procedural_images
from dfkd.inversion.recipe import InversionRecipe
from dfkd.models.input_spec import InputSpec
from dfkd.pruning.method import PruningMethod
from dfkd.quantization.recipe import QuantizationRecipe
from dfkd.stages.dreams import all_dreams, held_out_set, training_files
from dfkd.stages.networks import load, save
from dfkd.stages.stage import Inputs, Notes, Recipe
from dfkd.store import Product
from dfkd.streaming import Dreamer, StreamingDreamDataModule, StreamingRecipe
from dfkd.training.data import SeededDataModule, Stream
from dfkd.training.fit import Workplace
from dfkd.training.metrics import SHOWN

STREAMED = "streamed"


@dataclass(frozen=True, kw_only=True)
class Learning(Recipe):
    """How a student learns.

    Attributes:
        distillation: from its teacher.
        spec: the teacher's input and classes.
        pruning: prunes the student while it learns; it then starts as its teacher. None: it is as it is given.
        quantization: in how many bits the student computes while it learns, and from then on. None: as it is given.
        reestimates_average: see `DistillationRecipe`; it keeps apart in a store what was made before that was done.
    """

    distillation: DistillationRecipe
    spec: InputSpec
    pruning: PruningMethod | None = None
    quantization: QuantizationRecipe | None = None
    reestimates_average: bool | None = None

    def stream(self, workplace: Workplace) -> Stream:
        """The batches that the student sees."""
        recipe = self.distillation
        return Stream(recipe.batch_size, recipe.updates, self.seed, workplace.options.num_workers)


@dataclass(frozen=True, kw_only=True)
class LearningFromStream(Learning):
    """How a student learns while new dreams are made.

    Attributes:
        streaming: when.
        inversion: how.
    """

    streaming: StreamingRecipe = field(default_factory=StreamingRecipe)
    inversion: InversionRecipe = field(default_factory=InversionRecipe)


@dataclass(frozen=True, kw_only=True)
class LearningFromControl(Learning):
    """How a student learns from images that are no dreams.

    Attributes:
        num_images: how many.
    """

    num_images: int


@dataclass(frozen=True, kw_only=True)
class LearningFromPictures(LearningFromControl):
    """How a student learns from procedural pictures.

    Attributes:
        families: of pictures, in turn.
    """

    families: tuple[str, ...]


DataFor = Callable[[nn.Module, nn.Module], SeededDataModule]  # from student and teacher


def learn_from_dreams(recipe: Learning, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach `student` on `dreams`."""
    data = DreamDataModule(all_dreams(inputs["dreams"]), recipe.stream(workplace))
    return learn(recipe, inputs, workplace, lambda *_: data)[1]


def learn_from_stream(recipe: LearningFromStream, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach `student` on `dreams` and on those that are made while it learns."""
    metrics = workplace.metrics

    def data_for(student: nn.Module, teacher: nn.Module) -> StreamingDreamDataModule:
        dreamer = Dreamer(teacher, student, recipe.inversion, recipe.spec)
        data = StreamingDreamDataModule(
            training_files(inputs["dreams"]), workplace.directory / STREAMED, dreamer, recipe.streaming,
            recipe.stream(workplace),
        )  # fmt: skip

        def on_new_batch(dreams: Dreams, row: dict[str, float]) -> None:
            metrics.log("stream", int(row["update"]), row)
            metrics.images("stream/dreams", recipe.spec.to_pixels(dreams.images[:SHOWN]), int(row["update"]))

        data.on_new_batch = on_new_batch
        return data

    data, notes = learn(recipe, inputs, workplace, data_for)
    return notes | {"stream": data.history, "seconds_dreaming": round(data.seconds, 3)}


def learn_from_noise(recipe: LearningFromControl, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach `student` on Gaussian noise: what distillation gives without any image."""
    noise = noise_images(recipe.num_images, recipe.spec.image_shape, recipe.seed)
    data = DreamDataModule(noise, recipe.stream(workplace))
    return learn(recipe, inputs, workplace, lambda *_: data)[1]


def learn_from_pictures(recipe: LearningFromPictures, inputs: Inputs, workplace: Workplace) -> Notes:
    """Teach `student` on procedural pictures: what distillation gives without inversion."""
    images = procedural_images(recipe.num_images, recipe.spec, recipe.seed, recipe.families)
    data = DreamDataModule(images, recipe.stream(workplace))
    return learn(recipe, inputs, workplace, lambda *_: data)[1]


def learn(recipe: Learning, inputs: Inputs, workplace: Workplace, data_for: DataFor) -> tuple[Any, Notes]:
    """Teach `student` by `teacher` on the images of a data module.

    Both are products, of `student_network` and `teacher_network`. Where there are `dreams`, the student is compared
    with its teacher on the held-out ones on its way.
    """
    teacher = load(inputs["teacher_network"], inputs["teacher"])
    student, prune = _start(recipe, inputs, teacher)
    data = data_for(student, teacher)
    held_out = held_out_set(inputs["dreams"]) if "dreams" in inputs else None
    history = recover_student(
        student, teacher, data, recipe.distillation, workplace, prune, held_out, recipe.quantization
    )
    save(student, workplace.directory)
    return data, {"history": history}


def _start(
    recipe: Learning, inputs: Inputs, teacher: nn.Module
) -> tuple[nn.Module, Callable[[nn.Module, float], None] | None]:
    """The network that learns, and what prunes it to a share of the final amount on the way."""
    student = load(inputs["student_network"], inputs["student"])
    method = recipe.pruning
    if method is None or method.amount is None or _shapes(student) != _shapes(teacher):
        return student, None  # pruned before it learns: its shape changed, or there is no amount that could rise
    images = all_dreams(inputs["dreams"]).training.images if method.takes("dreams") else Tensor()
    return load(inputs["teacher_network"], inputs["teacher"]), GradualPruning(method, teacher, images)


@dataclass(frozen=True)
class GradualPruning:
    """Prunes a network in place to a share of a method's amount; it asks `teacher` and `images` where it needs them."""

    method: PruningMethod
    teacher: nn.Module
    images: Tensor

    def __call__(self, network: nn.Module, share: float) -> None:
        amount = share * cast(float, self.method.amount)
        self.method.apply(network, self.teacher, lambda: self.images, amount=amount)


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in network.state_dict().values()]


def streamed_dreams(product: Product) -> list[Dreams]:
    """The batches of dreams that were made while a student learned, in that order."""
    bank = DreamBank(product.directory / STREAMED)
    return [bank.read(number)[0] for number in range(len(product.notes.get("stream", [])))]
