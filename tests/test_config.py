"""Composition: every choice of every group composes and builds; every typo is caught, wherever it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import dfkd.conf
from dfkd import config
from dfkd.config import as_override
from dfkd.errors import ConfigError, DfkdError
from dfkd.experiment_config import make_experiment
from dfkd.models.cost import parameters
from dfkd.models.input_spec import check_model
from dfkd.tasks import TASKS

CONF = Path(dfkd.conf.__file__).parent


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture
def composed():
    config.register()

    def compose_config(*overrides: str):
        with initialize_config_module("dfkd.conf", version_base="1.3"):
            return compose("config", overrides=["name=test", *overrides])

    return compose_config


def check(experiment) -> None:
    """What a run does before the work."""
    TASKS[experiment.task].check(experiment, experiment.check())


SMALL = {"input.image_shape": "[3,32,32]", "input.num_classes": "10", "input.mean": "[0,0,0]", "input.std": "[1,1,1]"}
GIVEN = ["experiment=custom", "teacher.weights=w.pt", *(f"{key}={value}" for key, value in SMALL.items())]


@pytest.mark.parametrize("model", config.named_models())
def test_every_model_builds_for_the_input_it_is_told(composed, model):
    experiment = make_experiment(composed(*GIVEN, f"model={model}"))
    check_model(experiment.network.build(), experiment.spec)


def test_the_demo_and_every_experiment_compose(composed):
    for experiment in choices("experiment"):
        cfg = composed(f"experiment={experiment}")
        assert set(cfg) == set(config.Schema.__annotations__)
    make_experiment(composed("experiment=demo"))


def test_any_torchvision_model_and_the_users_own(composed):
    experiment = make_experiment(composed(*GIVEN, "model=torchvision", "model.name=efficientnet_b0"))
    check_model(experiment.network.build(), experiment.spec)
    own = ["model._target_=dfkd.models.WideResNet", "+model.depth=10"]
    assert type(make_experiment(composed(*GIVEN, *own)).network.build()).__name__ == "WideResNet"


@pytest.mark.parametrize(
    "override",
    ["inversion.iteration=5", "distilation.updates=5", "trainer.gpus=1", "teacher.weight=x", "seeds=1",
     "inversion.iterations=many", "model.dpth=20", "data.rooot=x"],
)  # fmt: skip
def test_a_typo_on_the_command_line_is_refused(composed, override):
    with pytest.raises(ConfigCompositionException):
        composed("experiment=demo", override)


@pytest.mark.parametrize(
    ("text", "message"),
    [("inversion: {iteration: 5}", "iteration"), ("sead: 1", "sead"), ("teacher: {training: {update: 1}}", "update"),
     ("distillation: {updates: many}", "updates")],
)  # fmt: skip
def test_a_typo_inside_an_experiment_file_is_refused(text, message):
    config.register()
    schema = config.ConfigStore.instance().repo["schema.yaml"].node
    with pytest.raises(Exception, match=message):
        OmegaConf.merge(schema, OmegaConf.create(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [("+model.dpth=20", r"model\.dpth is not an option of CifarResNet.*Did you mean model\.depth"),
     ("+data.rot=x", r"data\.rot is not an option of digits"),
     ("+pruning.amonut=0.5", r"pruning\.amonut.*Did you mean pruning\.amount"),
     ("model._target_=no_such.Network", r"model\._target_=no_such\.Network could not be imported"),
     ("stage=dreams", "stage must be one of"),
     ("task=pruning", r"task must be one of \('recovery', 'transfer', 'class_incremental'\), got 'pruning'"),
     ("controls=[imagenet]", r"controls must be a list of \('noise', 'procedural', 'real'\), or \[\], got \['imagen"),
     ("model.depth=21", "depth must be 6n"),
     ("inversion.learning_rate=-1", r"inversion\.learning_rate must be above 0"),
     ("trainer.precision=16", r"trainer\.precision must be one of"),
     ("trainer.compile=sometimes", r"trainer\.compile must be one of"),
     ("trainer.dream_devices=0", r"trainer\.dream_devices must be 1 or more")],
)  # fmt: skip
def test_a_wrong_option_or_value_is_named(composed, override, message):
    with pytest.raises(DfkdError, match=message):
        make_experiment(composed("experiment=demo", override)).network.build()


NO_BATCH_NORM = [
    "model=torchvision", "model.name=squeezenet1_0", "input.image_shape=[3,32,32]", "input.mean=[0,0,0]",
    "input.std=[1,1,1]", "data=none", "teacher=pretrained", "teacher.weights=w.pt",
]  # fmt: skip


TOO_SMALL = [
    "model=vgg11_bn", "input.image_shape=[3,32,32]", "input.mean=[0,0,0]", "input.std=[1,1,1]", "data=none",
    "teacher=pretrained", "teacher.weights=w.pt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(NO_BATCH_NORM, "no batch-norm layer"),
     (["input.image_shape=[3,8]"], r"input\.image_shape must be"),
     (["input.num_classes=11", "data=none", "model.num_classes=10"], r"input\.num_classes must be 10"),
     (["teacher=pretrained", "teacher.weights=w.pt"], "there is no file w.pt"),
     (["data=none"], "neither a trained teacher nor data"),
     (["data=image_folder"], r"data\.root"),
     (["distillation.batch_size=513"], r"distillation\.batch_size must be at most inversion\.num_images \(512\)"),
     (["distillation.reconstruct=true", "pruning=filters"], r"distillation\.reconstruct needs .* its teacher's shapes"),
     (["model@student=resnet18"], "leave out model@student, or set task=transfer"),
     (["inversion.competition_weight=1"], r"inversion\.competition_weight is 1"),
     (["inversion.layer_weights=[1,2]"], r"inversion\.layer_weights must be .*one weight for each .* 19 batch-norm"),
     ([*TOO_SMALL, "inversion.half_resolution_iterations=5"], r"half_resolution_iterations must be 0")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(composed, overrides, message):
    with pytest.raises(DfkdError, match=message):
        check(make_experiment(composed("experiment=demo", *overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["model@student=resnet18"], r"distillation\.feature_weight"),
     (["distillation.feature_weight=0", "model@student=resnet18", "student.num_classes=3"], "num_classes must be 3"),
     (["distillation.reconstruct=true"], r"distillation\.reconstruct must be false with task=transfer")],
)  # fmt: skip
def test_what_cannot_work_in_transfer_is_refused_before_any_work(composed, overrides, message):
    experiment = make_experiment(composed("experiment=demo", "task=transfer", *overrides))
    with pytest.raises(DfkdError, match=message):
        check(experiment)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["experiment=demo", "task=class_incremental", "incremental.new_classes=5"], r"choose data@new_data=NAME"),
     (["experiment=incremental_digits", "incremental.new_classes=0"], r"incremental\.new_classes must be 2 or more"),
     (["experiment=incremental_digits", "new_data.only=[5,6]"], r"new_data: .*has 2 classes.*incremental\.new_classes"),
     (["experiment=incremental_digits", "data.only=[0,1,2,3,3]"], r"data\.only must be different classes"),
     (["experiment=incremental_digits", "controls=[noise]"], r"controls must be a list of \('fine_tuning'")],
)  # fmt: skip
def test_what_cannot_work_in_class_incremental_learning_is_refused(composed, overrides, message):
    with pytest.raises(DfkdError, match=message):
        check(make_experiment(composed(*overrides)))


TRANSFERS = {  # DeepInversion's and the field's pairs on CIFAR-10: parameters of teacher and student in millions
    "transfer_resnet34_to_resnet18": (21.3, 11.2),
    "transfer_vgg11_bn_to_resnet18": (9.2, 11.2),
    "transfer_vgg11_bn_to_vgg11_bn": (9.2, 9.2),
    "transfer_wrn_40_2_to_wrn_16_1": (2.2, 0.2),
    "transfer_wrn_40_2_to_wrn_40_1": (2.2, 0.6),
    "transfer_wrn_40_2_to_wrn_16_2": (2.2, 0.7),
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_the_published_transfers_are_there_by_name(composed, name):
    experiment = make_experiment(composed(f"experiment={name}"))
    built = [parameters(build()) / 1e6 for build in (experiment.network.build, experiment.student.build)]
    assert built == pytest.approx(TRANSFERS[name], abs=0.06)
    recipe = experiment.distillation
    assert (recipe.updates, recipe.batch_size, recipe.learning_rate, recipe.schedule) == (250 * 195, 256, 0.1, "step")
    assert experiment.streaming.every == 50 and experiment.inversion.competition_weight == 10
    check(experiment)


def test_options_without_a_value_are_all_named(composed):
    with pytest.raises(ConfigError, match=r"input\.image_shape.*model\._target_.*teacher\.weights"):
        make_experiment(composed("experiment=custom"))


def test_the_hash_tells_results_apart_and_ignores_where_they_go(composed):
    base = config.config_hash(composed("experiment=demo"))
    same = composed("experiment=demo", "run_dir=x", "store=y", "stage=dream", "logger=wandb", "trainer.device=1")
    assert config.config_hash(same) == base
    for option in ("seed=1", "pruning.amount=0.5", "trainer.precision=bf16-mixed"):
        assert config.config_hash(composed("experiment=demo", option)) != base


RECIPES = (
    config.InversionRecipe,
    config.DistillationRecipe,
    config.StreamingRecipe,
    config.IncrementalRecipe,
    config.TeacherRecipe,
    config.TrainerOptions,
)


def test_every_option_of_a_recipe_is_documented():
    for recipe in RECIPES:
        documented = " ".join(cls.__doc__ or "" for cls in recipe.__mro__)
        for option in recipe.__dataclass_fields__:
            assert f"{option}:" in documented, f"{recipe.__name__}.{option}"


# METHOD's settings: batch, iterations (half and full resolution), learning rate, betas, a_f, jitter.
PUBLISHED = {
    "cifar10_paper": (256, 0, 2000, 0.05, (0.9, 0.999), 10, 2),
    "cifar10_clean": (256, 0, 2000, 0.1, (0.9, 0.999), 10, 2),
    "imagenet_paper": (152, 0, 20000, 0.05, (0.9, 0.999), 0.01, 30),
    "imagenet_multiresolution": (84, 2000, 1000, 0.25, (0.5, 0.9), 0.01, 30),
    "ppr": (32, 0, 200, 0.05, (0.9, 0.999), 10, 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings_are_there_by_name(composed, name):
    recipe = make_experiment(composed(*GIVEN, "model=resnet20", f"inversion={name}")).inversion
    steps = recipe.batch_size, recipe.half_resolution_iterations, recipe.iterations
    adam = recipe.learning_rate, (recipe.beta1, recipe.beta2)
    assert (*steps, *adam, recipe.feature_weight, recipe.jitter) == PUBLISHED[name]


def test_the_published_recovery_is_there_by_name(composed):
    cfg = composed("experiment=image_folder_resnet20", "teacher.weights=w.pt", "data=none", "distillation=ppr")
    recipe = make_experiment(cfg).distillation
    assert (recipe.updates, recipe.batch_size, recipe.learning_rate, recipe.momentum) == (480, 32, 1e-3, 0.9)
    assert (recipe.batch_norm, recipe.reestimate_batch_norm, recipe.reconstruct) == ("frozen", False, False)
    assert (recipe.feature_weight, recipe.mixup, recipe.nesterov) == (0, 0, False)
    assert recipe.logits_weight * recipe.temperature**2 == pytest.approx(1)  # plain KL at temperature 3
    assert recipe.temperature == 3 and recipe.crop_padding == 4 and recipe.flip


STUDIES = {
    "study_cifar10": (8, 4, 3),
    "study_cifar10_224": (8, 4, 3),
    "study_resnet20": (4, 3),
    "study_small": (3, 4, 1),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_sweeps_over_models_sparsities_and_seeds(study):
    config.register()
    with initialize_config_module("dfkd.conf", version_base="1.3"):
        given = ["name=x", f"experiment={study}"]
        swept = compose("config", overrides=given, return_hydra_config=True).hydra.sweeper.params
        axes = [[f"{key}={value}" for value in str(values).split(",")] for key, values in swept.items()]
        assert tuple(map(len, axes)) == STUDIES[study]
        built = set()
        for model in axes[0]:
            cfg = compose("config", overrides=[*given, model, axes[-2][-1], axes[-1][-1]])
            assert f"pruning.amount={cfg.pruning.amount}" == axes[-2][-1] and f"seed={cfg.seed}" == axes[-1][-1]
            built.add(cfg.model.get("name", cfg.model.get("depth")))
    assert len(built) == (len(axes[0]) if len(axes) == 3 else 1)


@pytest.mark.parametrize(
    ("override", "new"),
    [("judge.weights=w.pt", "verifier.weights=w.pt"), ("model@judge.model=resnet18", "model@verifier.model=resnet18"),
     ("teacher=given", "teacher=pretrained"), ("experiment=cifar10_resnet20", "experiment=image_folder_resnet20"),
     ("verifier.extractor=judge,teacher", "verifier.extractor=verifier,teacher")],
)  # fmt: skip
def test_names_of_before_are_refused_with_those_of_today(override, new):
    with pytest.raises(ConfigError, match=re.escape(f"now: {new}")):
        config.refuse_renamed(["seed=1", override])


def test_names_that_only_look_like_those_of_before_are_taken():
    config.refuse_renamed(["teacher=given_by_me", "+judges=1", "name=judge", "experiment=cifar10_resnet20_mine"])
    assert "judge is called verifier now" in config.with_new_names("Key 'judge' not in 'Schema'")


@pytest.mark.parametrize("value", ["runs/a", "runs/a=b", "a,b (1)", 'x"y', "null", "12", "it's", "[x]", "${a}"])
def test_a_text_is_given_as_hydra_reads_it(value):
    override = as_override("run_dir", value)
    assert OverridesParser.create().parse_override(override).value() == value
