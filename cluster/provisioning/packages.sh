#!/usr/bin/env bash
# Install the build dependencies of FFCV and the packages given as arguments, with apt.
# Does nothing if all packages are installed. cluster/provisioning/setup.sh and the Dockerfile run it.
set -euo pipefail

missing=()
for package in g++ libopencv-dev libturbojpeg0-dev pkg-config "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

fail() {
    echo "error: system packages are missing: ${missing[*]}" >&2
    echo "$1" >&2
    exit 1
}

command -v apt-get >/dev/null ||
    fail "These are package names of Debian and Ubuntu; this machine has no apt-get. Use the Dockerfile."
as_root=(env)
if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "Installing them requires root or sudo. Ask an administrator to run:
    apt-get install ${missing[*]}"
    as_root=(sudo env)
fi

echo "Installing system packages: ${missing[*]}"
apt_get=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
if ! { "${apt_get[@]}" update &&
    "${apt_get[@]}" install --yes --no-install-recommends "${missing[@]}"; }; then
    fail "apt-get could not install them (its own message is above)."
fi
