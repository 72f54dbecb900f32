#!/bin/sh
# klto's compiler shim: first in PATH under "klto build --no-lto" and gone with it. Objects that were left out of
# LTO are compiled without the kernel's CC_FLAGS_LTO, as $(filter-out $(CC_FLAGS_LTO),...) in a Makefile does it
# (top Makefile, 6.1 and 6.12); everything else is the real compiler, started in place of this shell.
# Written by klto; the lines below are filled in for each build.
real=@REAL@
made=@MADE@
case " $* " in
*' -flto'*) ;;
*) exec "$real" "$@" ;;
esac
case " $* " in
@PATTERNS@) ;;
*) exec "$real" "$@" ;;
esac
previous=
for argument
do
	shift
	[ "$previous" = -o ] && printf '%s\n' "$argument" >>"$made"
	previous=$argument
	case $argument in
	-flto | -flto=* | -fsplit-lto-unit | -fvisibility=hidden) continue ;;
	esac
	set -- "$@" "$argument"
done
exec "$real" "$@"
