"""What a sweep draws, and how a draw becomes a run."""

import numpy as np
import pytest

from pipelines.run import Run, flatten, parse_settings
from tuning.search import RandomSearch
from tuning.space import Dimension, Sweep, as_arguments


def draws(dimension: Dimension, count: int = 200) -> list:
    random = np.random.default_rng(0)
    return [dimension.draw(random) for _ in range(count)]


def test_a_range_is_kept_and_filled():
    values = np.array(draws(Dimension(uniform=(0.5, 2.0))))
    assert values.min() >= 0.5
    assert values.max() <= 2.0
    assert 1.15 < values.mean() < 1.35


def test_a_logarithmic_range_gives_each_factor_of_ten_its_share():
    values = np.array(draws(Dimension(log_uniform=(1e-4, 1e-2)), 400))
    assert values.min() >= 1e-4
    assert values.max() <= 1e-2
    assert 0.4 < (values < 1e-3).mean() < 0.6


def test_every_choice_comes_and_nothing_else():
    values = draws(Dimension(choice=("sgd", (1, 2), None)))
    assert {str(value) for value in values} == {"sgd", "(1, 2)", "None"}


def test_a_length_gives_a_list_of_independent_values():
    values = draws(Dimension(choice=(1, 2), length=3))
    assert {len(value) for value in values} == {3}
    assert len({tuple(value) for value in values}) == 8


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "exactly one of choice, uniform and log_uniform, got none"),
        ({"choice": [1], "uniform": [0, 1]}, "got choice and uniform"),
        ({"uniform": [2, 1]}, r"uniform must be a low and a higher number, got \(2.0, 1.0\)"),
        ({"log_uniform": [0, 1]}, "log_uniform must be above 0"),
        ({"choice": [1], "length": 0}, "length must be 1 or more"),
        ({"chioce": [1]}, "chioce"),
    ],
)
def test_a_wrong_entry_of_a_space_is_refused(entry: dict, message: str):
    with pytest.raises(ValueError, match=message):
        parse_settings(Sweep, as_arguments({"space": {"model.growth_rate": entry}}))


def test_a_setting_comes_back_from_the_command_line_as_it_was():
    run = Run(name="x")
    assert parse_settings(Run, as_arguments(flatten(run))) == run


def search(space: dict[str, Dimension], num_trials: int, check=None) -> RandomSearch:
    return RandomSearch(
        space,
        num_trials=num_trials,
        seed=0,
        check=check or (lambda arguments: parse_settings(Run, arguments)),
    )


def test_samples_that_cannot_be_trained_are_drawn_again():
    space = {"model.scales": Dimension(choice=((1, 2, 3), (3, 2, 1), (1, 2))),
             "model.growth_rate": Dimension(choice=(6, 8, 10))}  # fmt: skip
    searcher = search(space, 3)
    samples = [searcher.suggest(str(k)) for k in range(3)]
    assert {sample["model.scales"] for sample in samples} == {(1, 2, 3)}
    assert {sample["model.growth_rate"] for sample in samples} == {6, 8, 10}


def test_a_space_with_too_few_samples_is_refused_with_the_reason():
    space = {"model.growth_rate": Dimension(choice=(6, 8, 0))}
    with pytest.raises(ValueError, match=r"gave 2 different samples.*growth_rate must be 1"):
        search(space, 3)


def test_a_search_that_goes_on_gives_the_samples_that_are_left(tmp_path):
    space = {"train.optim.lr": Dimension(log_uniform=(0.01, 1.0))}
    unbroken = search(space, 4)
    expected = [unbroken.suggest(str(k)) for k in range(4)]
    before = search(space, 4)
    assert [before.suggest("a"), before.suggest("b")] == expected[:2]
    before.save(str(tmp_path / "state"))
    after = search(space, 4)
    after.restore(str(tmp_path / "state"))
    assert [after.suggest("c"), after.suggest("d")] == expected[2:]
