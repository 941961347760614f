#!/bin/sh
# Finds a Python that can build the environment and hands over to install.py. Usage: setup.sh runtime|test|dev
# PYTHON=... names one interpreter; without it the newest supported one on PATH is taken.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fits() { # runs at all (a version manager's shim may not), is new enough, and can make environments
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 &&
        "$1" -I -c 'import venv, ensurepip' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if fits "$PYTHON"; then exec "$PYTHON" -I "$here/install.py" "$@"; fi
    echo "setup: PYTHON=$PYTHON does not run, is older than 3.11, or lacks venv and ensurepip" >&2
    exit 1
fi
for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
    if fits "$candidate"; then exec "$candidate" -I "$here/install.py" "$@"; fi
done
cat >&2 <<'REMEDY'
setup: found no Python 3.11 to 3.14 with venv and ensurepip on PATH.
       Debian or Ubuntu:  apt-get install python3 python3-venv
       Fedora:            dnf install python3
       elsewhere:         install Python 3.11 or newer, or name one with  make PYTHON=/path/to/python3
REMEDY
exit 1
