# Shared by the commands in this directory; sourced, not run.
#
# Knows how to find a Python that the project supports and how to make a virtual environment with
# it on a bare machine. What goes into the environment is the caller's business.

# Containers and service managers may start us without one; pip and pyenv both need it.
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf '\n%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 1
}

supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# The path of the first supported interpreter, the oldest version first; $PYTHON overrides.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python from 3.11 to 3.14."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if supported_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python from 3.11 to 3.14 found. Install one (on Debian 12 and newer:
apt-get install python3 python3-venv) or name it: PYTHON=/path/to/python $0"
}

# Debian ships Python without what a virtual environment needs.
provide_venv() {
    local python="$1" version package
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package="python$version-venv"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "$python cannot make virtual environments (it lacks ensurepip).
Install the package that adds it, on Debian as root: apt-get install $package"
    fi
    echo "Installing $package, which $python needs to make a virtual environment"
    if ! { apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qqy -o Dpkg::Use-Pty=0 install "$package"; } \
        </dev/null >&2; then
        fail "apt-get could not install $package. Is there a network?"
    fi
}

# make_environment DIRECTORY: an empty virtual environment there, unless a working one exists.
make_environment() {
    local directory="$1" python
    if supported_python "$directory/bin/python"; then
        return
    fi
    python=$(find_python) || exit 1
    provide_venv "$python"
    echo "Making a virtual environment in $directory with $("$python" --version)"
    "$python" -m venv --clear "$directory" || fail "could not make a virtual environment."
}

# install_into DIRECTORY REQUIREMENT...
install_into() {
    local directory="$1"
    shift
    "$directory/bin/python" -m pip install --quiet "$@" </dev/null || fail \
        "pip could not install: $*
It needs a Python package index: a network connection, or a mirror or a directory of wheels that
pip is told about (PIP_INDEX_URL, or PIP_NO_INDEX=1 with PIP_FIND_LINKS)."
}
