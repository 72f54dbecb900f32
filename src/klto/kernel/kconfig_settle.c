// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does what "make olddefconfig" does, for many configurations with one reading of the tree's Kconfig files.
 *
 * Linked against the objects of the tree's scripts/kconfig (all but conf.o), run in the build dir with the
 * environment that the kernel's Makefile gives to conf. It reads lines from standard input,
 *
 *	CONFIG_FILE<TAB>RESULT_FILE
 *
 * and answers each with "ok" or "failed" on standard output. The line "?" is answered with a line
 * NAME<TAB>CHOICE for every symbol that has a prompt, and "ok"; members of one choice have one CHOICE, not "0".
 *
 * -DCHOICE_IS_MENU: a choice is found with sym_get_choice_menu() (since 6.11), else it is a symbol property.
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

static void *choice_of(struct symbol *sym)
{
#ifdef CHOICE_IS_MENU
	return sym_get_choice_menu(sym);
#else
	struct property *prop = sym_is_choice_value(sym) ? sym_get_choice_prop(sym) : NULL;

	return prop ? prop_get_symbol(prop) : NULL;
#endif
}

static void put_prompts(struct menu *menu)
{
	for (; menu; menu = menu->next) {
		if (menu->prompt && menu->sym && menu->sym->name)
			printf("%s\t%lx\n", menu->sym->name, (unsigned long)choice_of(menu->sym));
		put_prompts(menu->list);
	}
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
		if (!strcmp(line, "?")) {
			put_prompts(rootmenu.list);
			puts("ok");
			fflush(stdout);
			continue;
		}
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
