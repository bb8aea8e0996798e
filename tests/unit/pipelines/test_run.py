"""Settings of a run: files, the command line, and how a wrong one is refused."""

from dataclasses import replace

import pytest

from pipelines.evaluation.report import check_budgets
from pipelines.run import EvaluationConfig, Run, config_text, flatten, identity, read_run
from ranet import mult_adds
from tests.support.paths import PROJECT

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_has_budgets_its_network_keeps_and_says_what_it_costs(path):
    run = read_run(["--config", str(path)])
    check_budgets(mult_adds(run.model), run.evaluation.budget_fractions)
    assert run.name == path.stem.replace("_", "-")
    assert path.read_text().startswith("# ")


def test_the_paper_recipe_is_the_paper_recipe():
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


def test_image_sizes_share_the_epochs_equally():
    run = read_run(
        [
            "--train.progressive_sizes=[24,28,32]",
            "--train.epochs=8",
            "--data.augment.crop=random_resized",
        ]
    )
    assert run.train.epoch_sizes == (24, 24, 24, 28, 28, 28, 32, 32)
    assert Run().train.epoch_sizes == ()


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: mine\ntrain: {epochs: 7, optim: {lr: 0.5}}\n")
    run = read_run(["--config", str(path), "--train.optim.lr=0.3", "--model.scales=[1,2,3]"])
    assert (run.name, run.train.epochs, run.train.optim.lr) == ("mine", 7, 0.3)
    assert run.model.scales == (1, 2, 3)
    assert not run.fresh
    assert read_run(["--fresh"]).fresh
    assert read_run(["--fresh=true"]).fresh


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train.epochz=3"], "train.epochz is not a setting; did you mean train.epochs?"),
        (["--train.epochs=three"], "train.epochs: must be int, got three"),
        (["--model.scales=[3,1,1]"], "model.scales must start at 1 and never fall"),
        (["--model.image_size=8"], "model.image_size"),
        (
            ["--train.optim.schedule=steps"],
            "train.optim.schedule: must be one of 'multistep', 'cosine', got",
        ),
        (["--config", "/nowhere.yaml"], "config: File does not exist: '/nowhere.yaml'"),
        (
            ["--train.seed=9223372036854775808"],
            "train.seed must be from 0 to 9223372036854775807, got 9223",
        ),
        (["--name=a/b"], "name must be letters"),
        (
            ["--train.batch_size=1"],
            "train.batch_size must be at least cluster.num_workers (2)",
        ),
        (["--train.micro_batch_size=-1"], "train.micro_batch_size must be 0 or more, got -1"),
        (
            ["--train.checkpoint_every_steps=-1"],
            "train.checkpoint_every_steps must be 0 or more, got -1",
        ),
        (["--train.ema.decay=1"], "train.ema.decay must be in [0, 1), got 1.0"),
        (["--train.progressive_sizes=[0]"], "train.progressive_sizes must be 1 or more pixels"),
        (
            ["--train.progressive_sizes=[24,32]", "--train.epochs=1"],
            "train.progressive_sizes must be 1 or more pixels, at most one size an epoch (1)",
        ),
        (
            ["--train.progressive_sizes=[8]", "--data.augment.crop=none"],
            "train.progressive_sizes has 8, which this network cannot take: model.image_size 8 gives",
        ),
        (
            ["--train.progressive_sizes=[24]"],
            "train.progressive_sizes needs data.augment.crop random_resized or none",
        ),
        (["--train.loss.exit_weights=[1,2]"], "train.loss.exit_weights must have one entry per"),
        (
            ["--cluster.num_workers=0"],
            "cluster.num_workers must be 1 or more, or [least, most] of such, got 0",
        ),
        (
            ["--cluster.gpus_per_worker=0.5", "--cluster.num_workers=2"],
            "cluster.gpus_per_worker must be 1, or a part of 1 where cluster.num_workers is 1",
        ),
        (["--train.loss.curriculum=2"], "train.loss.curriculum must be from -1 to 1, got 2"),
        (["--cluster.storage_path="], "cluster.storage_path must name a folder"),
        (
            ["--cluster.storage_path=s3://team/runs/../others"],
            "cluster.storage_path must have no . or ..",
        ),
        (
            ["--data.prepared_dir=s3://team/images/../others"],
            "data.prepared_dir must be a path or s3://bucket",
        ),
        (["--name=../others"], "name must be letters, digits, dots, dashes and underscores"),
        (["--name=mine' or tags.x = 'y"], "name must be letters, digits, dots, dashes and"),
        (["train"], "unrecognized arguments: train"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_with_status_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ending:
        read_run(arguments)
    assert ending.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"error: {sentence}")
    assert len(written.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        (
            "--cluster.storage_path=s3://AKIAPLANTED:zq-planted@team/runs",
            "cluster.storage_path",
        ),
        (
            "--cluster.storage_path=s3://team/runs?secret_key=zq-planted",
            "cluster.storage_path",
        ),
        ("--data.prepared_dir=s3://AKIAPLANTED:zq-planted@team/images", "data.prepared_dir"),
        ("--data.prepared_dir=s3://team/images?secret_key=zq-planted", "data.prepared_dir"),
        ("--data.source_dir=s3://AKIAPLANTED:zq-planted@team/images", "data.source_dir"),
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(argument, setting, capsys):
    with pytest.raises(SystemExit):
        read_run([argument])
    written = capsys.readouterr().err
    assert setting in written
    assert "AWS_SECRET_ACCESS_KEY" in written
    assert "planted" not in written.lower()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {scalez: [1]}", "model.scalez is not a setting; did you mean model.scales?"),
        ("epochs: 3", "epochs is not a setting"),
        ("train: {optim: {lr: fast}}", "train.optim.lr: must be float, got fast"),
        ("name: [", "run.yaml is not YAML: while parsing"),
        ("\x01", "run.yaml is not YAML: unacceptable character"),
        ("- name", "run.yaml must hold settings, as in name: value; got ['name']"),
        ("", "run.yaml must hold settings, as in name: value; got None"),
        ("train: 5", "run.yaml: train must hold settings, as in name: value; got 5"),
        ("train: {optim: }", "run.yaml: train: optim must hold settings"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_status_2(text, sentence, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ending:
        read_run(["--config", str(path)])
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_help_and_print_config_show_every_setting(option, capsys):
    with pytest.raises(SystemExit) as ending:
        read_run([option])
    assert ending.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())  # help is wrapped
    assert all(name.split(".")[-1] in shown for name in flatten(Run()))
    assert ("Images a step, over all workers together" in shown) == (option == "--help")


def test_the_resolved_config_is_the_same_run(tmp_path):
    run = read_run(["--config", str(CONFIGS[0]), "--train.loss.exit_weights=[]", "--fresh"])
    path = tmp_path / "config.yaml"
    path.write_text(config_text(run))
    assert read_run(["--config", str(path)]) == replace(run, fresh=False)


def test_settings_are_flattened_with_strings_as_they_are_and_the_rest_as_json():
    flat = flatten(Run())
    assert flat["name"] == "cifar10"
    assert flat["fresh"] == "false"
    assert flat["model.scales"] == "[1, 2, 3]"
    assert flat["train.optim.lr"] == "0.1"


def test_what_is_trained_and_where_it_lies_make_the_identity_and_nothing_else_does():
    keys = identity(Run())
    assert {key.split(".")[0] for key in keys} == {
        "name", "model", "data", "train", "registry", "cluster",
    }  # fmt: skip
    assert [key for key in keys if key.startswith("cluster.")] == ["cluster.storage_path"]


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((), "evaluation.budget_fractions must be above 0 and up to 1"),
        ((0.5, 1.01), "evaluation.budget_fractions must be above 0 and up to 1"),
        ((0.505,), "in steps of 0.01"),
        ((float("nan"),), "evaluation.budget_fractions must be above 0"),
        ((1.0, 0.5), "evaluation.budget_fractions must rise"),
        ((0.5, 0.5), "evaluation.budget_fractions must rise"),
    ],
)
def test_impossible_budget_fractions_are_rejected(budgets, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(budget_fractions=budgets)
