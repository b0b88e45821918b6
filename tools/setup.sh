#!/bin/sh
# Fills .venv with the packages of requirements.txt and this checkout (editable). `make` calls it when
# requirements.txt or pyproject.toml is newer than .venv/.installed. Needs Python 3.11+ and a package registry;
# where uv is not on PATH, it is put into .venv too.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
busy=.venv/.installing # our process id while we work: found later, it tells of a set-up that was interrupted

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_uv() { # --version and not `command -v`: a version manager's shim may be there with no uv behind it
    for uv in uv .venv/bin/uv .venv/uv-bootstrap/bin/uv; do "$uv" --version >/dev/null 2>&1 && return; done
    return 1
}

new_enough "$PYTHON" ||
    fail "'$PYTHON' is not a Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3.11"

if [ -e $busy ]; then
    pid=$(cat $busy)
    ! kill -0 "$pid" 2>/dev/null || fail "process $pid is filling .venv now; let it finish (or run: make clean)"
    say "the last set-up did not finish, .venv is built anew (downloads are kept)"
    find .venv -mindepth 1 -maxdepth 1 ! -name .installing -exec rm -rf {} + # the mark goes last: we too may be interrupted
elif [ -e .venv ] && ! new_enough .venv/bin/python; then
    say "the Python of .venv is gone or too old, .venv is built anew"
    rm -rf .venv
fi
mkdir -p .venv
rm -f .venv/.installed
echo $$ >$busy

if ! find_uv; then
    say "no uv on PATH: installing it into .venv"
    if "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
        "$PYTHON" -m venv .venv && .venv/bin/python -m pip install --quiet uv
    elif "$PYTHON" -m pip --version >/dev/null 2>&1; then # Debian without python3-venv
        "$PYTHON" -m pip install --quiet --target .venv/uv-bootstrap uv
    else
        fail "'$PYTHON' has neither venv nor pip; install uv, or on Debian and Ubuntu: apt install python3-venv"
    fi
    find_uv || fail "uv could not be installed; install it yourself and call again"
fi
[ -x .venv/bin/python ] ||
    "$uv" venv --quiet --allow-existing --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" .venv

say "installing the packages of requirements.txt into .venv (5 GB on Linux, where torch brings CUDA);" \
    "downloads are cached in $("$uv" cache dir)"
[ -t 2 ] && quiet= || quiet=--quiet # a progress bar for people, no list of a hundred packages in logs
"$uv" pip install $quiet --python .venv/bin/python -r requirements.txt
"$uv" pip install --quiet --python .venv/bin/python --no-build-isolation --no-deps -e .

mv $busy .venv/.installed
