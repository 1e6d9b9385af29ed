#!/bin/sh
# Install what the bridge needs of this machine: programs, and a Python environment.
#
#   setup.sh programs [check]   programs by apt, only where one is missing
#   setup.sh python             print a python3 >= 3.11 that can make environments
#
# What is there already is left alone, so a second run does nothing and is quick.
set -eu

# One line per need: the program (or file) that shows it is there, and its package.
needs() {
    cat <<'END'
qemu-system-x86_64 qemu-system-x86
mmdebstrap mmdebstrap
mksquashfs squashfs-tools
zstd zstd
setpriv util-linux
git git
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
END
    # An ordinary user builds the image in a user namespace of its own.
    [ "$(id -u)" = 0 ] || echo newuidmap uidmap
    find_python >/dev/null || printf '%s\n' 'python3-with-venv python3' 'python3-with-venv python3-venv'
    if [ "${1-}" = check ]; then
        printf '%s\n' 'luacheck lua-check' 'shellcheck shellcheck'
    fi
}

find_python() {
    for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

present() {
    case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
    esac
}

install_programs() {
    packages=
    while read -r shows package; do
        if ! present "$shows"; then
            echo "setup: $shows is missing: package $package" >&2
            packages="$packages $package"
        fi
    done <<END
$(needs "$@")
END
    [ -n "$packages" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "setup: this is no Debian or Ubuntu; install these yourself:$packages" >&2
        exit 3
    fi
    sudo=
    if [ "$(id -u)" != 0 ]; then
        echo "setup: installing packages needs root; asking sudo" >&2
        sudo=sudo
    fi
    # shellcheck disable=SC2086 # a list of package names
    $sudo apt-get install -y --no-install-recommends $packages >&2 ||
        { $sudo apt-get update >&2 &&
            $sudo apt-get install -y --no-install-recommends $packages >&2; }
}

case ${1-} in
programs)
    shift
    install_programs "$@"
    ;;
python)
    find_python || {
        echo "setup: no python3 >= 3.11 with venv; this system's is too old" >&2
        exit 3
    }
    ;;
*)
    echo "usage: setup.sh programs [check] | python" >&2
    exit 2
    ;;
esac
