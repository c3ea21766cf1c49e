#!/usr/bin/env bash
# Make .venv from pinned versions, or bring it up to date. A second run changes nothing and takes
# a fraction of a second.
#
#   PYTHON=python3.12 scripts/setup.sh    choose the interpreter (3.11 or newer)
#   VENV=path scripts/setup.sh            choose the folder (default: .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${VENV:-.venv}"
python="$venv/bin/python"
stamp="$venv/.metainit-setup"
# On a terminal pip shows how far it is; in a log it stays silent unless something is wrong.
quiet=(-qq)
if [ -t 2 ]; then quiet=(); fi

say() { printf '[setup] %s\n' "$*" >&2; }

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if new_enough "$PYTHON"; then
            printf '%s\n' "$PYTHON"
            return
        fi
        say "PYTHON=$PYTHON does not run, or is older than Python 3.11."
        return 1
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "metainit needs Python 3.11 or newer, and none was found on PATH."
    say "Found: $(python3 --version 2>/dev/null || echo 'no python3 at all')."
    say "Install one (python.org, pyenv, uv, or your system's packages) and run again,"
    say "or name it: make demo PYTHON=/path/to/python3.11"
    return 1
}

up_to_date() {
    [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$("$python" scripts/fingerprint.py)" ]
}

install() {
    if [ -d "$venv" ] && ! new_enough "$python"; then
        say "$venv has no working Python 3.11 or newer: making it anew."
        rm -rf "$venv"
    fi
    if [ ! -d "$venv" ]; then
        local interpreter
        interpreter="$(find_python)"
        say "making $venv with $("$interpreter" --version)"
        if ! "$interpreter" -m venv "$venv"; then
            rm -rf "$venv"
            say "could not make a virtual environment."
            say "On Debian and Ubuntu its module is a package of its own: apt install python3-venv"
            return 1
        fi
    fi
    rm -f "$stamp"
    say "installing the pinned versions (about 2 GB, some minutes the first time)"
    "$python" -m pip -qq install --disable-pip-version-check -c constraints.txt -U pip
    "$python" -m pip "${quiet[@]+"${quiet[@]}"}" install --disable-pip-version-check \
        -c constraints.txt --build-constraint constraints.txt -e '.[all,dev]'
    "$python" scripts/fingerprint.py >"$stamp"
}

if ! up_to_date; then
    # Two set-ups at once would trample on each other: where flock exists they take turns.
    if command -v flock >/dev/null 2>&1; then
        exec 9>".setup.lock"
        flock 9
    fi
    if ! up_to_date; then
        install
        say "ready: $venv"
    fi
fi
VENV="$venv" scripts/learn2learn.sh
