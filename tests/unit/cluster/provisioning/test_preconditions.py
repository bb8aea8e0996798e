"""Preconditions of a run on rented machines: one list, in two forms."""

import re
import shlex
import subprocess

from cluster.provisioning.cluster_file import read_cluster_spec
from cluster.provisioning.preconditions import PRECONDITIONS, precondition_findings
from tests.unit.test_project import ROOT

CHECKLIST = (ROOT / "docs" / "first-gpu-run.md").read_text()


def test_checklist_has_the_preconditions_of_the_dry_run_in_their_order():
    [table] = re.findall(r"prints \|\n\|---\|---\|---\|\n(.*?)\n\n", CHECKLIST, re.DOTALL)[:1]
    assert table.splitlines() == [
        f"| {each.text} | `{each.command.replace('|', chr(92) + '|')}` | {each.expected} |"
        for each in PRECONDITIONS
    ]
    assert [finding.text for finding in precondition_findings()] == list(map(str, PRECONDITIONS))


def test_quotas_cover_the_machines_of_the_cluster_file():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    gpu_types = [node for node in spec.workers if node.machine.gpus]
    for word, is_spot in (("on demand", False), ("on spot", True)):
        cpus = sum(
            node.max_workers * node.machine.cpus for node in gpu_types if node.is_spot == is_spot
        )
        [quota] = [each for each in PRECONDITIONS if word in each.text]
        assert quota.expected == f"{cpus}.0 or more"


def test_cluster_file_without_the_outputs_is_found(tmp_path):
    stack = PRECONDITIONS[0]

    def count(text):
        (tmp_path / "ray_cluster.yaml").write_text(text)
        return subprocess.run(
            shlex.split(stack.command), cwd=tmp_path, capture_output=True, text=True, check=False
        ).stdout.strip()

    text = (ROOT / "ray_cluster.yaml").read_text()
    assert int(count(text)) > 0
    [command] = re.findall(
        r"sed -i (\S+) ray_cluster.yaml", (ROOT / "docs/operating/cluster.md").read_text()
    )
    assert command == '"s|\\b$name\\b|$value|g"'
    for name in ("REGISTRY", "SECURITYGROUP", "SUBNET", "PLACEMENTGROUP"):
        text = re.sub(rf"\b{name}\b", "value", text)
    assert count(text) == stack.expected


def test_commands_of_the_checklist_name_existing_files_and_settings():
    for path in re.findall(
        r"\b((?:pipelines|configs|benchmarks)/[\w./-]+\.(?:py|yaml))", CHECKLIST
    ):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"-m ((?:cluster|benchmarks)\.[\w.]+)", CHECKLIST):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for link in re.findall(r"\]\(([\w./-]+)\)", CHECKLIST):
        assert (ROOT / "docs" / link).is_file(), link
