// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does what "make olddefconfig" does, for many configurations with one reading of the tree's Kconfig files.
 *
 * Linked against the objects of the tree's scripts/kconfig (all but conf.o), run in the build dir with the
 * environment that the kernel's Makefile gives to conf. It reads lines from standard input,
 *
 *	CONFIG_FILE<TAB>RESULT_FILE
 *
 * and answers each with "ok" or "failed" on standard output.
 *
 * Each is settled by a process of its own: what conf_read() leaves behind (the order of a choice's members in
 * 6.12, among others) must not reach the next.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lkc.h"

static int settle(const char *config, const char *result)
{
	return conf_read(config) || conf_write(result) ? 1 : 0;
}

int main(void)
{
	char line[2 * PATH_MAX + 2];

	conf_set_message_callback(NULL);
	conf_parse("Kconfig");
	while (fgets(line, sizeof(line), stdin)) {
		char *result;
		int status = -1;
		pid_t child;

		line[strcspn(line, "\n")] = '\0';
		result = strchr(line, '\t');
		if (result) {
			*result++ = '\0';
			child = fork();
			if (!child)
				_exit(settle(line, result));
			if (child > 0 && waitpid(child, &status, 0) != child)
				status = -1;
		}
		puts(status ? "failed" : "ok");
		fflush(stdout);
	}
	return 0;
}
