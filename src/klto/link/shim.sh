#!/bin/sh
# klto's linker shim: first in PATH under "klto build" and gone with it. A relocatable link that may have LLVM
# bitcode among its inputs goes to klto; everything else is the real linker, started in place of this shell.
# Written by klto; the three lines below are filled in for each build.
real=@REAL@
python=@PYTHON@
entry=@ENTRY@

relocatable= output= previous=
for argument
do
	case $argument in
	-r | --relocatable) relocatable=1 ;;
	esac
	case $previous in
	-o) output=$argument ;;
	esac
	previous=$argument
done
# A *.ko is linked from native objects: the LTO link of a kernel module makes the *.o before it.
case $relocatable:$output in
:* | *.ko) exec "$real" "$@" ;;
esac
exec "$python" -I -S "$entry" "$real" "$@"
