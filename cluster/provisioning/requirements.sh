#!/usr/bin/env bash
# Install the requirements of this project for a Python, all versions pinned by constraints.txt.
# Used by cluster/provisioning/setup.sh and the Dockerfile:
#
#   cluster/provisioning/requirements.sh PYTHON PIP-ARGUMENT...
set -euo pipefail
python=$1
constraints=$(realpath "$(dirname "$0")/../../constraints.txt")
pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade --constraint "$constraints" pip
"${pip[@]}" install --constraint "$constraints" --build-constraint "$constraints" "${@:2}"
"$python" -c 'import ffcv, mlflow, ray, torchvision'
