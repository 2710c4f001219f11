#!/bin/sh
# Makes .venv: the project, its tests and checks, and the vLLM that suits this machine.
#
#   sh tests/environment/install.sh
#   PYTHON=/path/to/python3.12 sh tests/environment/install.sh
#
# Owns the choice of a Python; `install.py` does the rest, and is done at once if nothing changed.
set -eu
cd "$(dirname "$0")/../.."

suits='import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))'
newer='import sys; sys.exit(sys.version_info[:2] < (3, 14))'
version='import platform; print(platform.python_version())'

# An environment that is there goes on with its own Python.
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && .venv/bin/python -c "$suits" 2>/dev/null; then
    exec .venv/bin/python -I tests/environment/install.py
fi

chosen=
incapable=
seen=
# What `python3` means is the user's own choice; the others are looked for where it does not do.
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.13 python3.12 python3.11
fi
for candidate in "$@"; do
    # Running it is the only proof: version managers leave names behind that start nothing.
    found=$("$candidate" -c "$version" 2>/dev/null) || continue
    seen="$seen${seen:+, }$candidate is $found"
    "$candidate" -c "$suits" || continue
    if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        incapable=${incapable:-$candidate}
        continue
    fi
    chosen=$candidate
    break
done
if [ -z "$chosen" ] && [ -z "$incapable" ] && "$1" -c "$newer" 2>/dev/null; then
    echo "No Python 3.11, 3.12 or 3.13 here: trying the newer $1" >&2
    chosen=$1
fi

if [ -n "$chosen" ]; then
    exec "$chosen" -I tests/environment/install.py
fi
if [ -n "$incapable" ]; then
    number=$("$incapable" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Error: $incapable cannot make virtual environments, it has no ensurepip. On Debian and" \
        "Ubuntu: sudo apt install python$number-venv" >&2
    exit 1
fi
echo "Error: Python 3.11, 3.12 or 3.13 is needed (${seen:-there is no $1 that runs}). Install" \
    "one, or name one: make setup PYTHON=/path/to/python3.12" >&2
exit 1
