"""Command line: settings from files and options, errors, and help."""

import pytest

from cluster.cli import RENAMED, setting_names
from cluster.paths import with_absolute_paths
from pipelines import train, tune
from pipelines.run import Run, flatten, read_run
from tuning.config import Sweep


def test_command_line_overrides_the_config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: mine\ntrain: {epochs: 7, optim: {lr: 0.5}}\n")
    run = read_run(["--config", str(path), "--train.optim.lr=0.3", "--model.scales=[1,2,3]"])
    assert (run.name, run.train.epochs, run.train.optim.lr) == ("mine", 7, 0.3)
    assert run.model.scales == (1, 2, 3)
    assert not train.command_line().read([]).new_attempt
    assert train.command_line().read(["--new-attempt"]).new_attempt


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--train.epochz=3"], "train.epochz is not a setting; did you mean train.epochs?"),
        (["--train.epochs=three"], "train.epochs: must be int, got three"),
        (["--model.scales=[3,1,1]"], "model.scales must start at 1 and never decrease"),
        (["--model.image_size=8"], "model.image_size"),
        (
            ["--train.optim.schedule=steps"],
            "train.optim.schedule: must be one of 'multistep', 'cosine', got",
        ),
        (["--config", "/nowhere.yaml"], "--config is /nowhere.yaml: no such file"),
        (
            ["--train.seed=9223372036854775808"],
            "train.seed must be from 0 to 9223372036854775807, got 9223",
        ),
        (["--name=a/b"], "name must consist of letters"),
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
            "train.progressive_sizes must be 1 or more pixels, at most one size per epoch (1)",
        ),
        (
            ["--train.progressive_sizes=[8]", "--data.augment.crop=none"],
            "train.progressive_sizes contains 8, which this network cannot process: "
            "model.image_size 8 gives",
        ),
        (
            ["--train.progressive_sizes=[24]"],
            "train.progressive_sizes needs data.augment.crop random_resized or none",
        ),
        (["--train.loss.exit_weights=[1,2]"], "train.loss.exit_weights must have one entry per"),
        (
            ["--cluster.num_workers=0"],
            "cluster.num_workers must be 1 or more, or [min, max] with 1 <= min <= max, got 0",
        ),
        (
            ["--cluster.gpus_per_worker=0.5", "--cluster.num_workers=2"],
            "cluster.gpus_per_worker must be 1, or a fraction if cluster.num_workers is 1",
        ),
        (["--train.loss.curriculum=2"], "train.loss.curriculum must be from -1 to 1, got 2"),
        (["--cluster.storage_path="], "cluster.storage_path must name a folder"),
        (
            ["--cluster.storage_path=s3://team/runs/../others"],
            "cluster.storage_path must not contain . or ..",
        ),
        (
            ["--data.prepared_dir=s3://team/images/../others"],
            "data.prepared_dir must be a path or s3://bucket",
        ),
        (
            ["--name=../others"],
            "name must consist of letters, digits, dots, dashes and underscores",
        ),
        (["--name=mine' or tags.x = 'y"], "name must consist of letters, digits, dots, dashes and"),
        (["train"], "unrecognized arguments: train"),
    ],
)
def test_invalid_setting_is_rejected_in_one_line_with_status_2(arguments, sentence, capsys):
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
def test_key_in_a_uri_is_rejected_and_not_printed(argument, setting, capsys):
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
        ("- name", "run.yaml must contain settings, as in name: value; got ['name']"),
        ("", "run.yaml must contain settings, as in name: value; got None"),
        ("train: 5", "run.yaml: train must contain settings, as in name: value; got 5"),
        ("train: {optim: }", "run.yaml: train: optim must contain settings"),
    ],
)
def test_invalid_config_file_is_rejected_in_one_line_with_status_2(
    text, sentence, tmp_path, capsys
):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ending:
        read_run(["--config", str(path)])
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_help_and_print_config_contain_every_setting(option, capsys):
    with pytest.raises(SystemExit) as ending:
        read_run([option])
    assert ending.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())  # help is wrapped
    assert all(name.split(".")[-1] in shown for name in flatten(Run()))
    assert ("Images per step, over all workers (global batch size)" in shown) == (
        option == "--help"
    )


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_name_of_a_setting_is_rejected_with_the_new_name(old, new, capsys):
    parsers = [
        (parser, setting_names(kind))
        for kind, parser in ((Run, train.command_line()), (Sweep, tune.command_line()))
        if new in {*setting_names(kind), *parser._option_string_actions}
    ]
    assert parsers, f"{new} is no setting of a run or a sweep, and no option"
    for parser, names in parsers:
        assert old not in names
        with pytest.raises(SystemExit) as ending:
            parser.read([f"--{old}=1"])
        assert ending.value.code == 2
        assert capsys.readouterr().err == f"error: {old} was renamed to {new}\n"


def test_old_name_in_a_config_file_is_rejected_with_the_new_name(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("train: {ema_decay: 0.9}\n")
    with pytest.raises(SystemExit):
        read_run(["--config", str(path)])
    assert capsys.readouterr().err == "error: train.ema_decay was renamed to train.ema.decay\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dry_run: true", "run.yaml contains dry_run, which is not a setting"),
        ("fresh: true", "fresh was renamed to --new-attempt"),
    ],
)
def test_option_of_an_invocation_is_rejected_in_a_config_file(text, sentence, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ending:
        train.command_line().read(["--config", str(path)])
    assert ending.value.code == 2
    assert sentence in capsys.readouterr().err


def test_misspelled_option_of_an_invocation_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit):
        train.command_line().read(["--dry-runn"])
    assert "did you mean --dry-run?" in capsys.readouterr().err


def test_print_config_omits_options_of_an_invocation(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.command_line().read(["--dry-run", "--name=printed", "--print_config"])
    text = capsys.readouterr().out
    assert "dry_run" not in text
    path = tmp_path / "printed.yaml"
    path.write_text(text)
    assert train.command_line().read(["--config", str(path)]).settings == with_absolute_paths(
        Run(name="printed")
    )
