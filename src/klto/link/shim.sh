#!/bin/sh
# klto's linker shim: first in PATH under "klto build" and gone with it. A relocatable link that may have LLVM
# bitcode among its inputs goes to klto; everything else is the real linker, started in place of this shell.
# Written by klto; the three lines below are filled in for each build.
real=@REAL@
python=@PYTHON@
entry=@ENTRY@

# One match over all arguments: a loop over thousands of them would take milliseconds.
case " $* " in
*' -r '* | *' --relocatable '*) ;;
*) exec "$real" "$@" ;;
esac
# A *.ko is linked from native objects: the LTO link of a kernel module makes the *.o before it.
previous=
for argument
do
	case $previous$argument in
	-o*.ko) exec "$real" "$@" ;;
	esac
	previous=$argument
done
exec "$python" -I -S "$entry" "$real" "$@"
