#!/usr/bin/env bash
# Create .venv with the project and its requirements, all versions pinned by constraints.txt.
# PYTHON is the interpreter, 3.11 or 3.12. Does nothing if nothing has changed since the last complete
# set-up; otherwise .venv is created from scratch.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Print the real path of the first usable interpreter.
find_python() {
    local candidate candidates=(.venv/bin/python python3.11 python3.12 python3)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        "$candidate" - 2>/dev/null <<'END' && return
import os, sys
if sys.version_info[:2] not in ((3, 11), (3, 12)):
    sys.exit(1)
print(os.path.realpath(sys.executable))
END
    done
    return 1
}

python=$(find_python) || {
    if [[ -n ${PYTHON:-} ]]; then
        echo "error: PYTHON is $PYTHON, which is not a working Python 3.11 or 3.12" >&2
        exit 1
    fi
    cluster/provisioning/packages.sh python3
    python=$(find_python) || {
        echo "error: no Python 3.11 or 3.12 found, and this system's python3 is another version." >&2
        echo "Install one of the two and name it: make setup PYTHON=/path/to/python3.12" >&2
        exit 1
    }
}

# Distributions split their Python into packages; other builds are complete.
python_packages=()
if [[ $python == /usr/bin/* ]]; then
    python_packages=("$(basename "$python")-dev" "$(basename "$python")-venv")
fi
cluster/provisioning/packages.sh "${python_packages[@]}"

stamp=.venv/set-up-from
inputs="$PWD $python
$(sha256sum pyproject.toml constraints.txt cluster/provisioning/setup.sh cluster/provisioning/requirements.sh)"
if [[ -f $stamp && $(<"$stamp") == "$inputs" ]]; then
    exit 0
fi

echo "Making .venv with $python"
rm -rf .venv
"$python" -m venv .venv
cluster/provisioning/requirements.sh .venv/bin/python --editable '.[train,export,dev]'
echo "$inputs" >"$stamp"
