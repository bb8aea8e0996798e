"""Cluster file of the project, and an AWS account for it."""

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import utils

from tests.unit.test_project import ROOT


@pytest.fixture
def aws():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture
def ec2(monkeypatch, tmp_path):
    """EC2 of an account with nothing but a default VPC, by moto."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # for the SSH key that Ray creates
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    with mock_aws():
        yield boto3.resource("ec2", "us-west-2")
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
