"""A small trained network and its exports."""

from pathlib import Path

import pytest

from pipelines.model_export.folder import ExportOptions, write_export
from pipelines.model_packaging.contents import make_saved_model
from ranet import SavedModel
from tests.support.registered import INFO, RUN, trained_network


@pytest.fixture(scope="session")
def saved() -> SavedModel:
    network = trained_network()
    return make_saved_model(RUN, network.model.state_dict(), network.evaluation, INFO, {})


@pytest.fixture(scope="session")
def exports(saved: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of exports by format."""
    folder = tmp_path_factory.mktemp("exports")
    for name in ("onnx", "openvino"):
        write_export(saved, ExportOptions(name), folder / name)
    return {name: folder / name for name in ("onnx", "openvino")}
