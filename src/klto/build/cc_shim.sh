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
output=
previous=
for argument
do
	[ "$previous" = -o ] && output=$argument
	previous=$argument
done
# Kbuild names objects of other directories arch/x86/kvm/../../../virt/kvm/kvm_main.o.
case $output in
*/../*) output=$(printf '%s' "$output" | sed -e ':again' -e 's,[^/]*/\.\./,,' -e 'tagain') ;;
esac
case " -o $output " in
@PATTERNS@) ;;
*) exec "$real" "$@" ;;
esac
printf '%s\n' "$output" >>"$made"
# CC_FLAGS_LTO ends with -fvisibility=hidden; one that stands elsewhere is the object's own (x86's purgatory).
group=
for argument
do
	shift
	case $group$argument in
	-flto | -flto=* | -fsplit-lto-unit | lto-flto | lto-flto=* | lto-fsplit-lto-unit)
		group=lto
		continue
		;;
	lto-fvisibility=hidden)
		group=
		continue
		;;
	esac
	group=
	set -- "$@" "$argument"
done
exec "$real" "$@"
