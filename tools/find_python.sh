#!/bin/sh
# Print the first usable Python among the given versions, e.g. `find_python.sh 3.11 3.12 3.13`.
#
# Usable: it starts (version managers put dead stand-ins on PATH), it is one of these versions, and it
# can make virtual environments. $PYTHON, when set, is the only candidate. Otherwise exit 1 with one
# sentence on stderr.
set -u

check='import sys
if "%d.%d" % sys.version_info[:2] not in sys.argv[1:]: sys.exit(3)
import ensurepip, venv
print(sys.executable)'

without_venv=

try() {
    if "$1" -c "$check" $versions 2>/dev/null </dev/null; then
        exit 0
    fi
    if "$1" -c "${check%import ensurepip*}" $versions >/dev/null 2>&1 </dev/null; then
        without_venv=${without_venv:-$1}
    fi
}

versions=$*
if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON"
else
    for version in $versions; do
        try "python$version"
    done
    try python3
    try python
fi

wanted=$(printf '%s' "$versions" | sed 's/ / or /g')
if [ -n "$without_venv" ]; then
    echo "error: $without_venv can't make virtual environments: install its venv module" \
        "(on Debian and Ubuntu: apt install python3-venv), then run make again." >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is not a working Python $wanted: name one that is, or leave it out." >&2
else
    echo "error: no Python $wanted was found on PATH: install one, or name it with" \
        "make PYTHON=/path/to/python." >&2
fi
exit 1
