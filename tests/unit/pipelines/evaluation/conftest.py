"""A small evaluation for the tests of this folder."""

import pytest

from pipelines.evaluation.budgets import Evaluation, evaluate_outputs
from tests.support.exit_outputs import COSTS, TEST, VAL


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    return evaluate_outputs(COSTS, VAL, TEST, (0.34, 0.67, 1.0))
