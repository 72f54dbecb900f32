// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lets a kernel tree's own Kconfig answer questions about a configuration.
 *
 * Linked against the objects of the tree's scripts/kconfig (all but conf.o), run in the build dir with the
 * environment that the kernel's Makefile gives to conf:
 *
 *	kconfig_ask CONFIG_FILE
 *
 * It reads symbol names (without CONFIG_) from standard input, one a line, and answers each with one line of
 * JSON on standard output. The line "*" is answered with the list of all names.
 *
 * Kconfig's structures changed between 6.1 and 6.12; what the headers at hand have is told by
 *	-DCHOICE_IS_MENU   a choice is found with sym_get_choice_menu() (since 6.11), else it is a symbol property
 *	-DPLAIN_FILENAME   menus and properties have a filename (since 6.10), else a struct file
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lkc.h"

#ifdef PLAIN_FILENAME
#define FILE_OF(x) ((x)->filename)
#else
#define FILE_OF(x) ((x)->file ? (x)->file->name : NULL)
#endif

static void put_string(const char *text)
{
	const unsigned char *p = (const unsigned char *)(text ? text : "");

	putchar('"');
	for (; *p; p++) {
		if (*p == '"' || *p == '\\')
			printf("\\%c", *p);
		else if (*p < 0x20)
			printf("\\u%04x", *p);
		else
			putchar(*p);
	}
	putchar('"');
}

static void put_expr(struct expr *e);
static void put_choice_condition(struct symbol *choice);

/* A symbol inside an expression: its name, value and whether it is a constant such as y or "text". */
static void put_leaf(struct symbol *sym)
{
	sym_calc_value(sym);
	if (sym_is_choice(sym)) {
		put_choice_condition(sym);
		return;
	}
	printf("{\"op\":\"sym\",\"val\":%d,\"name\":", sym_get_tristate_value(sym));
	put_string(sym->name);
	printf(",\"text\":");
	put_string(sym_get_string_value(sym));
	printf(",\"const\":%s}", sym->flags & SYMBOL_CONST ? "true" : "false");
}

/* Members of a choice depend on the choice itself, which has no name: show what its prompt depends on. */
static void put_choice_condition(struct symbol *choice)
{
	struct property *prop;

	printf("{\"op\":\"choice\",\"val\":%d,\"args\":[", sym_get_tristate_value(choice));
	for_all_prompts(choice, prop) {
		put_expr(prop->visible.expr);
		break;
	}
	printf("]}");
}

static const char *op_name(enum expr_type type)
{
	switch (type) {
	case E_OR:	return "or";
	case E_AND:	return "and";
	case E_NOT:	return "not";
	case E_EQUAL:	return "=";
	case E_UNEQUAL:	return "!=";
	case E_LTH:	return "<";
	case E_LEQ:	return "<=";
	case E_GTH:	return ">";
	case E_GEQ:	return ">=";
	case E_RANGE:	return "range";
	default:	return "?";
	}
}

/* An expression as a tree; every node has its current value (0 no, 1 module, 2 yes). No expression: null. */
static void put_expr(struct expr *e)
{
	if (!e) {
		printf("null");
		return;
	}
	if (e->type == E_SYMBOL) {
		put_leaf(e->left.sym);
		return;
	}
	printf("{\"op\":\"%s\",\"val\":%d,\"args\":[", op_name(e->type),
	       e->type == E_RANGE ? 0 : expr_calc_value(e));
	switch (e->type) {
	case E_OR:
	case E_AND:
		put_expr(e->left.expr);
		putchar(',');
		put_expr(e->right.expr);
		break;
	case E_NOT:
		put_expr(e->left.expr);
		break;
	default:
		put_leaf(e->left.sym);
		putchar(',');
		put_leaf(e->right.sym);
	}
	printf("]}");
}

/* Every property of one type: where it is, its condition, and its value where it has one. */
static void put_properties(const char *key, struct symbol *sym, enum prop_type type)
{
	struct property *prop;
	const char *comma = "";

	printf(",\"%s\":[", key);
	for (prop = sym->prop; prop; prop = prop->next) {
		/* A menuconfig's prompt has the type P_MENU in older trees. */
		if (type == P_PROMPT ? !prop->text : prop->type != type)
			continue;
		printf("%s{\"file\":", comma);
		put_string(FILE_OF(prop));
		printf(",\"line\":%d,\"when\":", prop->lineno);
		put_expr(prop->visible.expr);
		if (type == P_PROMPT) {
			printf(",\"prompt\":");
			put_string(prop->text);
		} else {
			printf(",\"value\":");
			put_expr(prop->expr);
		}
		putchar('}');
		comma = ",";
	}
	putchar(']');
}

static void put_member(struct symbol *member, const char **comma)
{
	sym_calc_value(member);
	printf("%s{\"name\":", *comma);
	put_string(member->name);
	printf(",\"val\":%d,\"visible\":%d}", sym_get_tristate_value(member), member->visible);
	*comma = ",";
}

/* The choice that a symbol belongs to: its prompt and members. Not a member: null. */
static void put_choice(struct symbol *sym)
{
	const char *comma = "";
	struct symbol *choice = NULL, *member;
	struct property *prop;
#ifdef CHOICE_IS_MENU
	struct menu *menu, *top = sym_get_choice_menu(sym);

	if (top)
		choice = top->sym;
#else
	struct expr *e;

	prop = sym_is_choice_value(sym) ? sym_get_choice_prop(sym) : NULL;
	if (prop)
		choice = prop_get_symbol(prop);
#endif
	if (!choice) {
		printf(",\"choice\":null");
		return;
	}
	sym_calc_value(choice);
	printf(",\"choice\":{\"prompt\":");
	for_all_prompts(choice, prop)
		break;
	put_string(prop ? prop->text : "");
	printf(",\"members\":[");
#ifdef CHOICE_IS_MENU
	menu_for_each_sub_entry(menu, top) {
		member = menu->sym;
		if (member && member->name && sym_get_choice_menu(member) == top)
			put_member(member, &comma);
	}
#else
	expr_list_for_each_sym(sym_get_choice_prop(choice)->expr, e, member)
		put_member(member, &comma);
#endif
	printf("]}");
}

static void put_symbol(const char *name)
{
	struct symbol *sym = sym_find(name);
	struct property *range;

	printf("{\"name\":");
	put_string(name);
	/* A symbol that is only mentioned in expressions has no type. */
	if (!sym || sym->type == S_UNKNOWN) {
		printf(",\"known\":false}\n");
		return;
	}
	sym_calc_value(sym);
	printf(",\"known\":true,\"type\":\"%s\",\"now\":\"%s\"", sym_type_name(sym->type),
	       sym_type_name(sym_get_type(sym)));
	printf(",\"value\":");
	put_string(sym_get_string_value(sym));
	printf(",\"val\":%d,\"visible\":%d", sym_get_tristate_value(sym), sym->visible);
	put_properties("prompts", sym, P_PROMPT);
	put_properties("defaults", sym, P_DEFAULT);
	put_properties("ranges", sym, P_RANGE);
	printf(",\"depends\":");
	put_expr(sym->dir_dep.expr);
	printf(",\"selected\":");
	put_expr(sym->rev_dep.expr);
	printf(",\"implied\":");
	put_expr(sym->implied.expr);
	range = sym_get_range_prop(sym);
	printf(",\"range\":");
	put_expr(range ? range->expr : NULL);
	put_choice(sym);
	printf("}\n");
}

static void put_names(void)
{
	struct symbol **all = sym_re_search("."), **p;
	const char *comma = "";

	putchar('[');
	for (p = all; p && *p; p++) {
		if ((*p)->type == S_UNKNOWN)
			continue;
		printf("%s", comma);
		put_string((*p)->name);
		comma = ",";
	}
	printf("]\n");
	free(all);
}

int main(int argc, char **argv)
{
	char line[SYMBOL_MAXLENGTH];

	if (argc != 2) {
		fprintf(stderr, "usage: %s CONFIG_FILE\n", argv[0]);
		return 2;
	}
	conf_set_message_callback(NULL);
	conf_parse("Kconfig");
	if (conf_read(argv[1])) {
		fprintf(stderr, "%s: cannot read %s\n", argv[0], argv[1]);
		return 1;
	}
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strcmp(line, "*"))
			put_names();
		else
			put_symbol(line);
		fflush(stdout);
	}
	return 0;
}
