#!/bin/sh
# Unpacks Debian's linux-source-VERSION into klto's cache and prints where it is. Whole or not at all.
# Usage: scripts/unpack-linux.sh 6.12
set -eu
version=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/klto/src
archive=/usr/src/linux-source-$version.tar.xz
[ -r "$archive" ] || {
	echo "klto: $archive is missing: apt-get install linux-source-$version" >&2
	exit 2
}
# The folder is named after the very archive: an updated package is unpacked anew.
tree=$cache/linux-source-$version-$(stat -L -c '%s-%Y' "$archive")
if [ ! -d "$tree" ]; then
	mkdir -p "$cache"
	aside=$(mktemp -d "$cache/.unpacking.XXXXXX")
	trap 'rm -rf "$aside"' EXIT INT TERM HUP
	echo "unpacking $archive" >&2
	tar -xf "$archive" -C "$aside"
	mv -T "$aside/linux-source-$version" "$tree" 2>/dev/null || [ -d "$tree" ]
fi
echo "$tree"
