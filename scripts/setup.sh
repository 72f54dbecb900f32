#!/bin/sh
# Makes this clone ready: Debian packages (as root; otherwise prints the command and stops with status 2) and a
# virtual environment in .venv. Usage: scripts/setup.sh demo|test
set -eu
cd "$(dirname "$0")/.."

# To build x86_64 and arm64 kernels with LLVM 19 and boot the host's own architecture.
packages="clang-19 lld-19 llvm-19 make flex bison bc perl libc6-dev libelf-dev libssl-dev xz-utils
	python3 python3-venv linux-source-6.12"
case $(uname -m) in
aarch64) packages="$packages qemu-system-arm" ;;
*) packages="$packages qemu-system-x86" ;;
esac
case ${1-} in
demo) extras= ;;
test)
	# The tests also build 6.1, boot the other architecture, compare with LLVM 14 and 22, use cpio as an oracle,
	# and open reports in a browser.
	packages="$packages qemu-system-x86 qemu-system-arm linux-source-6.1 cpio kmod rsync
		clang-14 lld-14 llvm-14 clang-22 lld-22 llvm-22 binutils chromium chromium-driver"
	extras='[dev]'
	;;
*)
	echo "usage: scripts/setup.sh demo|test" >&2
	exit 2
	;;
esac

missing=
for package in $packages; do
	case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
	*' installed') ;;
	*) missing="$missing $package" ;;
	esac
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "klto: missing packages; as root run:" >&2
		echo "  apt-get update && apt-get install -y --no-install-recommends$missing" >&2
		exit 2
	fi
	echo "installing:$missing"
	apt-get update -q
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

# The virtual environment is made anew when what it should hold has changed.
wanted="$(cat pyproject.toml scripts/setup.sh | cksum) $PWD"
have=$(cat .venv/.wanted 2>/dev/null || :)
# What the tests have, the demo has too.
if [ "$have" != "$wanted $extras" ] && [ "$have" != "$wanted [dev]" ]; then
	python=
	for candidate in python3 /usr/bin/python3; do
		if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			python=$candidate
			break
		fi
	done
	if [ -z "$python" ]; then
		echo "klto: no Python 3.11 or later with venv: apt-get install python3 python3-venv" >&2
		exit 2
	fi
	rm -rf .venv
	"$python" -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras"
	echo "$wanted $extras" >.venv/.wanted
fi
