"""Files stored with a registered model."""

from pathlib import Path

import pytest

from cluster.errors import TrackingError
from cluster.tracking import registry
from pipelines.model_packaging.package import RegisteredVersion


def test_added_files_are_downloaded_with_the_model(version: RegisteredVersion, tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "stage1.onnx").write_text("graph")
    uri = f"models:/{version.name}@champion"
    registry.add_files(uri, tmp_path / "new", "export/onnx_fp32")
    model = registry.download(uri, str(tmp_path / "downloaded"))
    assert (model / "export" / "onnx_fp32" / "stage1.onnx").read_text() == "graph"
    assert (model / "MLmodel").exists()


@pytest.mark.usefixtures("version")
def test_adding_files_to_an_unknown_model_is_an_error(tmp_path: Path):
    with pytest.raises(TrackingError, match="models:/no-such@champion"):
        registry.add_files("models:/no-such@champion", tmp_path, "export")
