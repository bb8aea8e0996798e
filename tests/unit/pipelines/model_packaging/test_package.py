"""Registration of a trained network as an MLflow model."""

from mlflow import MlflowClient

from pipelines.model_packaging.package import RegisteredVersion, register_model
from tests.support.registered import INFO, RUN, trained_network


def test_run_that_registers_twice_has_one_version(client: MlflowClient, version: RegisteredVersion):
    network = trained_network()
    run_id = client.get_model_version(version.name, version.version).run_id
    assert run_id is not None
    again = register_model(RUN, network.model.state_dict(), network.evaluation, INFO, run_id)
    assert again == version
    assert len(client.search_model_versions(f"name='{version.name}'")) == 1
    assert client.get_run(run_id).info.status == "RUNNING"
