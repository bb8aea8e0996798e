"""Errors, signals and logging of the entry scripts."""

import logging
import signal

import pytest

from cluster.cli import PACKAGES, configure_logging, main_guard
from cluster.errors import RunError


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("data.source_dir is wrong"), 1, "error: data.source_dir is wrong\n"),
        (RunError("worker 1 failed: it"), 1, "error: worker 1 failed: it\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "interrupted; run it again under the same name to resume\n"),
    ],
)
def test_an_error_of_the_user_ends_with_one_sentence(error, status, sentence, capsys):
    with pytest.raises(SystemExit) as ending, main_guard():
        raise error
    assert ending.value.code == status
    assert capsys.readouterr().err == sentence


def test_sigterm_ends_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending, main_guard():
        signal.raise_signal(signal.SIGTERM)
    assert ending.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted;")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError), main_guard():
        raise KeyError("a bug")


@pytest.fixture
def logging_as_it_was():
    loggers = [logging.getLogger(name) for name in ("", *PACKAGES, "mlflow")]
    levels = [logger.level for logger in loggers]
    handlers = loggers[0].handlers[:]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_of_several_workers_all_but_one_speak_of_errors_alone(logging_as_it_was, capsys):
    speaker = logging.getLogger("cluster.storage.download")
    for only_errors in (True, False):
        configure_logging(only_errors=only_errors)
        speaker.info("loading %s", only_errors)
        speaker.error("failed %s", only_errors)
    output = capsys.readouterr().err
    assert "failed True" in output
    assert "loading True" not in output
    assert "loading False" in output
