#!/usr/bin/env bash
# Install what a run needs into the Python of a Ray container: the dependencies alone, since the
# code comes with each job. The Dockerfile and ray_cluster.yaml run it.
set -euo pipefail
cd "$(dirname "$0")/.."
bash cluster/packages.sh

# pip builds in the folder of pyproject.toml: here that may be read-only, or hold the code.
dependencies=$(mktemp -d)
trap 'rm -rf "$dependencies"' EXIT
cp pyproject.toml "$dependencies"
pip=(python -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade --constraint constraints.txt pip
"${pip[@]}" install --no-cache-dir --constraint constraints.txt \
    --build-constraint constraints.txt "$dependencies[train]"
