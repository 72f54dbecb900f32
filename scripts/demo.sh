#!/bin/sh
# From nothing to a booted ThinLTO kernel: Linux 6.12 from Debian's source package.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh demo
tree=$(scripts/unpack-linux.sh 6.12)
case $(uname -m) in
aarch64) config=configs/arm64-6.12.config arch=arm64 ;;
*) config=configs/x86_64-6.12.config arch=x86_64 ;;
esac
exec .venv/bin/klto build -C "$tree" -b "${XDG_CACHE_HOME:-$HOME/.cache}/klto/demo/$arch" \
	-t llvm-19 -k allnoconfig -K "$config" --lto thin --boot
