#!/usr/bin/env bash
# Install this project's requirements into a Python, every version pinned by constraints.txt.
# cluster/provisioning/setup.sh and the Dockerfile run it:
#
#   cluster/provisioning/requirements.sh PYTHON PIP-ARGUMENT...
set -euo pipefail
python=$1
constraints=$(realpath "$(dirname "$0")/../../constraints.txt")
pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade --constraint "$constraints" pip
"${pip[@]}" install --constraint "$constraints" --build-constraint "$constraints" "${@:2}"
"$python" -c 'import ffcv, mlflow, ray, torchvision'
