#!/usr/bin/env bash
# Install learn2learn 0.2.0 into .venv, for the recipes that choose `algorithm.engine: learn2learn`.
#
# Its published archive carries C code that was generated for older Pythons and does not compile
# on 3.11 or newer. Asking for build_ext generates that code again from the Cython sources, for
# which Cython, numpy and an older setuptools have to be in the environment itself.
# Without a C compiler this says so and succeeds: everything else works without learn2learn.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${VENV:-.venv}"
python="$venv/bin/python"
stamp="$venv/.metainit-learn2learn"
log="$venv/learn2learn-build.log"

say() { printf '[setup] %s\n' "$*" >&2; }

fingerprint="$("$python" scripts/fingerprint.py)"
seen="" outcome=""
if [ -f "$stamp" ]; then
    read -r seen outcome <"$stamp" || true
    if [ "$seen" = "$fingerprint" ] && [ -n "$outcome" ]; then
        if [ "$outcome" = failed ]; then
            say "learn2learn did not build here (see $log); delete $stamp to try again."
        fi
        exit 0
    fi
fi

installed() {
    "$python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("learn2learn") != "0.2.0")' \
        >/dev/null 2>&1
}

pip_install() {
    "$python" -m pip -qq install --disable-pip-version-check -c constraints.txt "$@"
}

build() {
    pip_install --build-constraint constraints.txt \
        cython setuptools wheel numpy scipy tqdm requests gym pillow
    # Their own requirements would pull in far more than learn2learn uses.
    pip_install --no-deps qpth torchvision
    pip_install --no-deps --no-build-isolation \
        --config-settings="--build-option=build_ext" learn2learn
}

if ! installed; then
    if ! command -v "${CC:-cc}" >/dev/null 2>&1 && ! command -v gcc >/dev/null 2>&1; then
        say "no C compiler found: learn2learn is left out, everything else works."
        say "To have it too, install one (Debian, Ubuntu: apt install gcc python3-dev) and run this again."
        exit 0
    fi
    say "compiling learn2learn (about half a minute)"
    if ! build >"$log" 2>&1; then
        printf '%s failed\n' "$fingerprint" >"$stamp"
        say "learn2learn did not build and is left out; everything else works."
        say "The reason is at the end of $log (are Python's headers there? apt install python3-dev)"
        exit 0
    fi
fi
printf '%s installed\n' "$fingerprint" >"$stamp"
