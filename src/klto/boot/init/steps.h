// SPDX-License-Identifier: MIT
/* ---- what every proof uses: its status, its lines of the plan, files ----------------------------- */

enum status { PASSED, FAILED, NOT_APPLICABLE };
static const char *const status_names[] = { "passed", "failed", "not-applicable" };

/* Why a proof failed or does not apply; the proof sets it. */
static const char *reason;

static enum status fail(const char *why)
{
	reason = why;
	return FAILED;
}

static enum status not_applicable(const char *why)
{
	reason = why;
	return NOT_APPLICABLE;
}

/* What is left of the plan. Lines are cut off in place. */
static char *plan_rest;

/* Cut the next line off, if it begins with a keyword; the part behind that, or 0. */
static char *next_line(const char *keyword)
{
	char *argument = (char *)behind(plan_rest, keyword), *end = plan_rest;

	if (!argument || !*plan_rest)
		return 0;
	while (*end && *end != '\n')
		end++;
	plan_rest = *end ? end + 1 : end;
	*end = '\0';
	return argument;
}

/* Cut the next line off, whatever it is. */
static void skip_line(void)
{
	while (*plan_rest && *plan_rest != '\n')
		plan_rest++;
	plan_rest += *plan_rest == '\n';
}

/* Cut the first word off; what is behind it. */
static char *cut_word(char *line)
{
	while (*line && *line != ' ')
		line++;
	if (*line)
		*line++ = '\0';
	return line;
}

/* Read a whole file and end it with a NUL; its length, less than 0 when it cannot be read. */
static long read_file(const char *path, char *to, ulong room)
{
	long fd = open_file(path, O_RDONLY), n = 0;
	ulong size = 0;

	if (fd < 0)
		return fd;
	while (size < room - 1 && (n = system_call(NR_read, fd, (long)(to + size), (long)(room - 1 - size), 0)) > 0)
		size += (ulong)n;
	close_file(fd);
	to[size] = '\0';
	return n < 0 ? n : (long)size;
}

/* Load a module; 0 or an error. */
static long load_module(const char *path)
{
	long fd = open_file(path, O_RDONLY), result;

	if (fd < 0)
		return fd;
	result = system_call(NR_finit_module, fd, (long)"", 0, 0);
	close_file(fd);
	return result;
}

static long unload_module(const char *name)
{
	return system_call(NR_delete_module, (long)name, O_NONBLOCK, 0, 0);
}
