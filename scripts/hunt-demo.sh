#!/bin/sh
# Five small random ThinLTO kernels of Linux 6.12, built and booted; what fails is explained and minimised.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh demo
tree=$(scripts/unpack-linux.sh 6.12)
exec .venv/bin/klto hunt -C "$tree" -a x86_64 -t llvm-19 -K configs/hunt-x86_64.config --count "${COUNT:-5}" \
	--probability 4 --max-objects 900 --each 20m --boot --minimize-calls "${CALLS:-40}" \
	--dir "${XDG_CACHE_HOME:-$HOME/.cache}/klto/hunt-demo"
