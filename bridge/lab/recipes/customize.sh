#!/bin/sh
# Run by mmdebstrap with the new root as $1: fetch the sources that the kernel
# module is built from, by the image's own package client.
set -eu
root=$1
sed -n 's/^deb /deb-src /p' "$root/etc/apt/sources.list" \
    > "$root/etc/apt/sources.list.d/sources.list"
mkdir -p "$root/usr/src/lua"
chroot "$root" apt-get update -q
for package in $LAB_SOURCES; do
    # shellcheck disable=SC2016 # the inner shell expands it
    chroot "$root" sh -c \
        'cd /usr/src/lua && apt-get source -q --download-only -o APT::Sandbox::User=root "$1"' \
        sh "$package"
done
rm "$root/etc/apt/sources.list.d/sources.list"
