#!/bin/sh
# The Pythons of this machine, on the PATH or pyenv's. `pythons.sh`: a line for each version that greenpg supports, the
# oldest first, as "3.10 /path/to/python3.10". `pythons.sh NAME`: the path of that one, such as python3.13.
SUPPORTED="3.10 3.11 3.12 3.13 3.14"

find_python() {
    for candidate in "$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$1"; do
        # A pyenv shim is there, but fails, for a version that isn't chosen: so it must run.
        "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null && return
    done
    return 1
}

if [ $# -eq 1 ]; then
    find_python "$1" || { echo "there is no $1 on this machine" >&2; exit 1; }
else
    for version in $SUPPORTED; do
        path=$(find_python "python$version") && echo "$version $path"
    done
    true
fi
