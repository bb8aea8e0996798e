"""Configuration of a run: checks, identity and YAML."""

import pytest

from pipelines.evaluation.budgets import check_budgets
from pipelines.run import EvaluationConfig, Run, config_text, flatten, identity, read_run
from ranet import mult_adds
from ranet.training.schedule import epoch_sizes
from tests.support.paths import PROJECT

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_with_valid_budgets_and_starts_with_its_cost(path):
    run = read_run(["--config", str(path)])
    check_budgets(mult_adds(run.model), run.evaluation.budget_fractions)
    assert run.name == path.stem.replace("_", "-")
    assert path.read_text().startswith("# ")


def test_cifar10_config_has_the_settings_of_the_paper():
    run = read_run(["--config", str(next(path for path in CONFIGS if path.stem == "cifar10"))])
    assert run.model.scales == (1, 2, 3, 3)
    assert run.model.num_exits == 8
    assert (run.train.epochs, run.train.batch_size, run.train.loss.label_smoothing) == (
        300,
        64,
        0.0,
    )
    assert run.train.loss.exit_weights == ()
    optim = run.train.optim
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (optim.schedule, optim.milestones, optim.gamma) == ("multistep", (0.5, 0.75), 0.1)
    assert (optim.nesterov, optim.decay, optim.warmup_epochs) == (False, "all", 0)


def test_progressive_sizes_divide_the_epochs_equally():
    run = read_run(
        [
            "--train.progressive_sizes=[24,28,32]",
            "--train.epochs=8",
            "--data.augment.crop=random_resized",
        ]
    )
    assert epoch_sizes(run.train) == (24, 24, 24, 28, 28, 28, 32, 32)
    assert epoch_sizes(Run().train) == ()


def test_config_text_parses_to_the_same_run(tmp_path):
    run = read_run(["--config", str(CONFIGS[0]), "--train.loss.exit_weights=[]"])
    path = tmp_path / "config.yaml"
    path.write_text(config_text(run))
    assert read_run(["--config", str(path)]) == run


def test_flattened_settings_are_strings_or_json():
    flat = flatten(Run())
    assert flat["name"] == "cifar10"
    assert flat["data.augment.flip"] == "true"
    assert flat["model.scales"] == "[1, 2, 3]"
    assert flat["train.optim.lr"] == "0.1"


def test_identity_has_all_sections_and_of_the_cluster_only_the_storage_path():
    keys = identity(Run())
    assert {key.split(".")[0] for key in keys} == {
        "name", "model", "data", "train", "evaluation", "registry", "cluster",
    }  # fmt: skip
    assert [key for key in keys if key.startswith("cluster.")] == ["cluster.storage_path"]


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((), "evaluation.budget_fractions must be above 0 and up to 1"),
        ((0.5, 1.01), "evaluation.budget_fractions must be above 0 and up to 1"),
        ((0.505,), "in steps of 0.01"),
        ((float("nan"),), "evaluation.budget_fractions must be above 0"),
        ((1.0, 0.5), "evaluation.budget_fractions must be in ascending order"),
        ((0.5, 0.5), "evaluation.budget_fractions must be in ascending order"),
    ],
)
def test_impossible_budget_fractions_are_rejected(budgets, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(budget_fractions=budgets)
