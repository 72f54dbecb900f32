// SPDX-License-Identifier: MIT
/* ---- proofs that a kernel of any architecture can be put to -------------------------------------- */

static ulong count_cpus(void)
{
	ulong mask[128], count = 0; /* 8192 CPUs, the most that x86's NR_CPUS allows */
	long bytes = system_call(NR_sched_getaffinity, 0, sizeof(mask), (long)mask, 0);

	for (long i = 0; i < bytes / (long)sizeof(ulong); i++)
		for (ulong word = mask[i]; word; word &= word - 1)
			count++;
	return count;
}

/* The kernel has started its first process, and that process can use the kernel. */
static enum status prove_init(void)
{
	struct utsname name;
	struct text line;
	char byte;
	long null = open_file("/dev/null", O_RDONLY);

	if (system_call(NR_getpid, 0, 0, 0, 0) != 1)
		return fail("init is not process 1");
	if (system_call(NR_uname, (long)&name, 0, 0, 0) != 0)
		return fail("uname failed");
	if (null < 0 || system_call(NR_read, null, (long)&byte, 1, 0) != 0)
		return fail("reading /dev/null gave no end of file");
	close_file(null);
	record("fact", "init release", name.release);
	record("fact", "init version", name.version);
	record("fact", "init machine", name.machine);
	open_record(&line, "fact", "init cpus ");
	add_number(&line, count_cpus());
	close_record(&line);
	return PASSED;
}

/*
 * Send what initcall_debug has put into the kernel's log before init, as facts of the form: @NUMBER LENGTH TEXT. The
 * console has it too, but loses bytes on a busy machine: drivers/tty/serial/8250/8250_port.c waits 10 ms for the
 * transmitter, no more. So it is of no use to send them by way of the console.
 * A record of /dev/kmsg is "LEVEL,SEQUENCE,MICROSECONDS,FLAGS;TEXT\n" (Documentation/ABI/testing/dev-kmsg).
 */
static enum status prove_initcalls(void)
{
	static char entry[1 << 13]; /* include/linux/printk.h of 6.1, CONSOLE_EXT_LOG_MAX; less since */
	ulong sent = 0;
	long n, overwritten = 0, init_starts = 0, fd;

	if (*channel->prefix)
		return PASSED;
	fd = open_file("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return PASSED;
	while (!init_starts && ((n = system_call(NR_read, fd, (long)entry, sizeof(entry) - 1, 0)) > 0 || n == -EPIPE)) {
		char *sequence, *text, *end;
		struct text line;

		if (n == -EPIPE) {
			overwritten = 1;
			continue;
		}
		entry[n] = '\0';
		sequence = behind_byte(entry, ',');
		text = behind_byte(entry, ';');
		if (!sequence || !text)
			continue;
		if ((end = behind_byte(text, '\n')))
			end[-1] = '\0';
		if (!sent && !to_number(sequence))
			fact_number("initcalls", "whole", 1);
		/* init/main.c, run_init_process: the last line before init */
		init_starts = behind(text, "Run ") && ends_with(text, " as init process");
		if (!behind(text, "calling ") && !behind(text, "initcall "))
			continue;
		open_record(&line, "fact", "initcalls @");
		add_number(&line, sent++);
		add(&line, " ");
		add_number(&line, length(text));
		add(&line, " ");
		add_printable(&line, text);
		close_record(&line);
	}
	close_file(fd);
	if (init_starts && !overwritten)
		fact_number("initcalls", "sent", (long)sent);
	return PASSED;
}

/* Send /proc/config.gz as facts of the form: @OFFSET HEXADECIMAL-BYTES. */
static enum status prove_config(void)
{
	enum { PIECE = 200 };
	unsigned char bytes[PIECE];
	ulong offset = 0;
	long fd, n;

	if (!mounted("proc", "/proc"))
		return not_applicable("needs CONFIG_PROC_FS");
	fd = open_file("/proc/config.gz", O_RDONLY);
	if (fd < 0)
		return not_applicable("needs CONFIG_IKCONFIG_PROC: there is no /proc/config.gz");
	while ((n = system_call(NR_read, fd, (long)bytes, PIECE, 0)) > 0) {
		struct text line;

		open_record(&line, "fact", "config @");
		add_number(&line, offset);
		add(&line, " ");
		for (long i = 0; i < n; i++) {
			const char pair[3] = { "0123456789abcdef"[bytes[i] >> 4], "0123456789abcdef"[bytes[i] & 15], 0 };
			add(&line, pair);
		}
		close_record(&line);
		offset += (ulong)n;
	}
	close_file(fd);
	return n < 0 ? fail("reading /proc/config.gz failed") : PASSED;
}

/* The plan's lines "module NAME PATH": load them in this order, unload them in the other. Facts: what came of each. */
static enum status prove_modules(void)
{
	enum { MOST = 8192 };
	static const char *loaded[MOST];
	struct text key;
	ulong count = 0;
	char *name, *path;

	while ((name = next_line("module "))) {
		long result;

		path = cut_word(name);
		result = load_module(path);
		key.size = 0;
		add(&key, "load:");
		add(&key, name);
		key.bytes[key.size < sizeof(key.bytes) ? key.size : sizeof(key.bytes) - 1] = '\0';
		fact_number("modules", key.bytes, result);
		if (result == 0 && count < MOST)
			loaded[count++] = name;
	}
	while (count--) {
		key.size = 0;
		add(&key, "unload:");
		add(&key, loaded[count]);
		key.bytes[key.size < sizeof(key.bytes) ? key.size : sizeof(key.bytes) - 1] = '\0';
		fact_number("modules", key.bytes, unload_module(loaded[count]));
	}
	return PASSED;
}

/* Lines "probe NAME PATH": load each and say what the kernel answered; klto knows what it should. */
static enum status prove_trim(void)
{
	char *name, *path;

	while ((name = next_line("probe "))) {
		long result;

		path = cut_word(name);
		result = load_module(path);
		fact_number("trim", name, result);
		if (result == 0)
			unload_module(name);
	}
	return PASSED;
}

/* The start of the name in a line of /proc/kallsyms, "ADDRESS TYPE NAME[\tMODULE]"; 0 for a module's symbol. */
static char *kallsyms_name(char *line)
{
	char *name = cut_word(cut_word(line));

	for (char *at = name; *at; at++)
		if (*at == '\t')
			return 0;
	return name;
}

/* The name's place in a sorted list, or -1. */
static long find_name(char *const *names, long count, const char *name)
{
	long low = 0, high = count;

	while (low < high) {
		long middle = low + (high - low) / 2;
		int order = compare(names[middle], name);

		if (order == 0)
			return middle;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return -1;
}

/* Cut ThinLTO's ".llvm.<hash>" off a promoted local's name; whether there was one (LLVM, GlobalValue names). */
static int cut_suffix(char *name)
{
	for (; *name; name++)
		if (behind(name, ".llvm.")) {
			*name = '\0';
			return 1;
		}
	return 0;
}

enum { MOST_NAMES = 1 << 16 };
static char *names[MOST_NAMES];
static ulong exact[MOST_NAMES], suffixed[MOST_NAMES];

/* Count in /proc/kallsyms each name of the list that klto has sorted. */
static enum status prove_names(void)
{
	static char list[1 << 21], buffer[1 << 16];
	long fd, n, count = 0;
	ulong held = 0, symbols = 0;

	if (!mounted("proc", "/proc") || (fd = open_file("/proc/kallsyms", O_RDONLY)) < 0)
		return not_applicable("needs CONFIG_KALLSYMS and CONFIG_PROC_FS: there is no /proc/kallsyms");
	if (read_file("/klto/names", list, sizeof(list)) < 0)
		return fail("cannot read the list of names");
	for (char *at = list; *at && count < MOST_NAMES;) {
		names[count++] = at;
		while (*at && *at != '\n')
			at++;
		if (*at)
			*at++ = '\0';
	}
	while ((n = system_call(NR_read, fd, (long)(buffer + held), (long)(sizeof(buffer) - 1 - held), 0)) > 0) {
		char *line = buffer, *end = buffer;
		ulong size = held + (ulong)n;

		for (; end < buffer + size; end++) {
			char *name;
			int cut;
			long at;

			if (*end != '\n')
				continue;
			*end = '\0';
			name = kallsyms_name(line);
			line = end + 1;
			if (!name)
				continue;
			symbols++;
			cut = cut_suffix(name);
			at = find_name(names, count, name);
			if (at >= 0)
				(cut ? suffixed : exact)[at]++;
		}
		held = (ulong)(buffer + size - line);
		memcpy(buffer, line, held); /* copies upwards from the first byte, so an overlap does no harm */
	}
	close_file(fd);
	if (n < 0)
		return fail("reading /proc/kallsyms failed");
	fact_number("livepatch-names", "symbols", (long)symbols);
	fact_number("livepatch-names", "checked", count);
	for (long i = 0; i < count; i++) {
		struct text line;

		if (exact[i] == 1 && suffixed[i] == 0)
			continue;
		open_record(&line, "fact", "livepatch-names name:");
		add_printable(&line, names[i]);
		add(&line, " ");
		add_number(&line, exact[i]);
		add(&line, " ");
		add_number(&line, suffixed[i]);
		close_record(&line);
	}
	return PASSED;
}

/*
 * LKDTM calls a function through a pointer of another type (drivers/misc/lkdtm/cfi.c). A kernel that enforces
 * CFI does not come back from it. A line "module NAME PATH" loads LKDTM first; a line "provoke NAME" asks for
 * another of its crashes (drivers/misc/lkdtm/core.c), for those who want a panic to look at.
 */
static enum status prove_cfi(void)
{
	const char *crash = "CFI_FORWARD_PROTO", *other;
	ulong size = 0;
	char *name;
	long fd, n;

	while ((name = next_line("module "))) {
		const char *path = cut_word(name);

		fact_number("cfi", name, load_module(path));
	}
	if ((other = next_line("provoke ")))
		crash = other;
	while (crash[size])
		size++;
	if (!mounted("debugfs", "/debug"))
		return not_applicable("needs CONFIG_DEBUG_FS");
	fd = open_file("/debug/provoke-crash/DIRECT", O_WRONLY);
	if (fd < 0)
		return not_applicable("needs CONFIG_LKDTM: there is no provoke-crash/DIRECT in debugfs");
	record("fact", "cfi called", "yes");
	n = system_call(NR_write, fd, (long)crash, (long)size, 0);
	close_file(fd);
	if (n < 0)
		return not_applicable("this LKDTM does not know the crash");
	record("fact", "cfi survived", "yes");
	return PASSED;
}

/*
 * Lines "kernel PATH", "initrd PATH", "cmdline TEXT". The second kernel's init reports the end of this proof;
 * its plan is in its own initramfs.
 */
static enum status prove_kexec(void)
{
	const char *kernel = next_line("kernel "), *initrd = next_line("initrd "), *cmdline = next_line("cmdline ");
	long kernel_fd, initrd_fd, result;
	ulong size = 1;

	if (!kernel || !initrd || !cmdline)
		return fail("the plan does not say what to start");
	kernel_fd = open_file(kernel, O_RDONLY);
	initrd_fd = open_file(initrd, O_RDONLY);
	if (kernel_fd < 0 || initrd_fd < 0)
		return fail("the image is not in the initramfs");
	for (const char *at = cmdline; *at; at++)
		size++;
	result = system_call6(NR_kexec_file_load, kernel_fd, initrd_fd, (long)size, (long)cmdline, 0, 0);
	if (result == -ENOSYS)
		return not_applicable("needs CONFIG_KEXEC_FILE");
	fact_number("kexec", "kexec_file_load", result);
	if (result < 0)
		return PASSED; /* klto says what the error means */
	record("fact", "kexec jump", "begun");
	system_call(NR_ioctl, channel_fd, TCSBRK, 1, 0);
	result = system_call(NR_reboot, (long)LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
	fact_number("kexec", "reboot", result);
	return fail("the kernel did not jump");
}

/* In the second kernel: init is here, so the jump has worked. */
static enum status prove_kexec_end(void)
{
	record("fact", "kexec second", "reached init");
	return PASSED;
}
