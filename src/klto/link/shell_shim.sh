#!/bin/sh
# make's shell in build dirs that were made with LLVM=/dir/: there the linker's absolute path is in every command,
# and PATH does not count. An alias for that path stands for klto's linker shim: the shell replaces it where it
# is a command's name and nowhere else, so the commands that Kbuild saves stay as they are.
# Written by klto; the lines below are filled in for each build.
shell=@SHELL@
if [ "$1" = -c ] && [ $# -eq 2 ]; then
	exec "$shell" -c @ALIAS@"
$2"
fi
exec "$shell" "$@"
