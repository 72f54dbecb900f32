// SPDX-License-Identifier: MIT
/*
 * klto's init: the first and only process of a guest. It finds a channel to klto, runs the proofs
 * that the plan names, reports each of them, and ends the guest.
 *
 * It is freestanding: no libc, no kernel headers, since `klto boot --kernel IMAGE` has neither a
 * sysroot nor a tree. Numbers below are kernel ABI; each block names the file (Linux 6.12) it is from.
 *
 * The plan is the file /klto/plan of the initramfs:
 *
 *     nonce <hexadecimal digits, made for this boot>
 *     proof <name>
 *     ...
 *
 * It is a file and not the kernel's command line because the kernel prints its command line on the
 * console, and may ignore it (CONFIG_CMDLINE_FORCE); the nonce must be known to nobody but klto and init.
 *
 * Every record is one line, bracketed by the nonce so that neither accident nor half a line is a verdict:
 *
 *     klto:<nonce> <sequence number> <verb> [<proof> [<status>] <text>] :<nonce>
 *
 *     hello <channel>            the channel that init has chosen
 *     begin <proof>
 *     fact <proof> <text>        evidence
 *     end <proof> passed|failed|not-applicable <text>
 *     done                       nothing follows; the guest is about to restart
 *
 * klto/boot/proofs.py is the other side. To add a proof: write `static enum status prove_x(void)`, put it
 * into `proofs`, and describe it in proofs.py.
 */

typedef unsigned long ulong;

/* ---- system calls ---------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* arch/x86/entry/syscalls/syscall_64.tbl */
enum { NR_read = 0, NR_write = 1, NR_close = 3, NR_ioctl = 16, NR_nanosleep = 35, NR_getpid = 39,
       NR_uname = 63, NR_sync = 162, NR_reboot = 169, NR_sched_getaffinity = 204, NR_openat = 257 };

static long system_call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory", "cc");
	return result;
}

/* The stack is 16-byte aligned at entry, and a function expects it so before the call (psABI 3.4.1, 3.2.2). */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall klto_main\n\thlt\n");

#elif defined(__aarch64__)
/* include/uapi/asm-generic/unistd.h */
enum { NR_ioctl = 29, NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_sync = 81,
       NR_nanosleep = 101, NR_sched_getaffinity = 123, NR_reboot = 142, NR_uname = 160, NR_getpid = 172 };

static long system_call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tbl klto_main\n\tbrk #1\n");

#else
#error "klto's init knows x86_64 and aarch64"
#endif

enum { AT_FDCWD = -100 };                                   /* include/uapi/linux/fcntl.h */
enum { O_RDONLY = 0, O_WRONLY = 1, O_NOCTTY = 0400 };       /* include/uapi/asm-generic/fcntl.h */
enum { TCSBRK = 0x5409 };                                   /* include/uapi/asm-generic/ioctls.h */

/* include/uapi/linux/reboot.h */
#define LINUX_REBOOT_MAGIC1 0xfee1deadL
#define LINUX_REBOOT_MAGIC2 672274793L
#define LINUX_REBOOT_CMD_RESTART 0x01234567L
#define LINUX_REBOOT_CMD_POWER_OFF 0x4321FEDCL

/* include/uapi/linux/utsname.h, struct new_utsname */
struct utsname {
	char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
};

static long open_file(const char *path, long flags)
{
	return system_call(NR_openat, AT_FDCWD, (long)path, flags, 0);
}

static void sleep_milliseconds(long milliseconds)
{
	long time[2] = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	system_call(NR_nanosleep, (long)time, 0, 0, 0);
}

/* ---- memory and text. The compiler may call memcpy and memset whatever the flags. -------------- */

void *memcpy(void *to, const void *from, ulong size)
{
	for (ulong i = 0; i < size; i++)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}

void *memset(void *to, int value, ulong size)
{
	for (ulong i = 0; i < size; i++)
		((char *)to)[i] = (char)value;
	return to;
}

/* A line under construction; what does not fit is dropped. */
struct text {
	ulong size;
	char bytes[640];
};

static void add(struct text *text, const char *string)
{
	for (; *string && text->size < sizeof(text->bytes); string++)
		text->bytes[text->size++] = *string;
}

/* Text that is not ours: one that holds a line end must not make two records. */
static void add_printable(struct text *text, const char *string)
{
	for (; *string && text->size < 512; string++)
		text->bytes[text->size++] = *string >= ' ' && *string <= '~' ? *string : '?';
}

static void add_number(struct text *text, ulong number)
{
	char digits[21] = { 0 };
	int at = 20;

	do
		digits[--at] = (char)('0' + number % 10);
	while ((number /= 10));
	add(text, digits + at);
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* ---- the channel ------------------------------------------------------------------------------ */

/*
 * Best first. The virtio console and the second UART carry nothing else. The kernel's log is shared, but
 * printk keeps its lines whole, which a write to the console's terminal does not: printk and the
 * terminal's transmitter take turns within a line. "<0>" (KERN_EMERG) passes every console log level.
 */
static const struct channel {
	const char *name, *path, *prefix;
} channels[] = {
	{ "virtio-console", "/dev/hvc0", "" },
#if defined(__x86_64__)
	{ "second-uart", "/dev/ttyS1", "" },
#endif
	{ "kernel-log", "/dev/kmsg", "<0>" },
	{ "console", "/dev/console", "\n" },
};

static const struct channel *channel;
static long channel_fd = -1;
static const char *nonce;
static ulong sequence;

/* Whether the whole line went out. A UART that is not there opens, and fails at the write (EIO). */
static int put(const struct text *line)
{
	ulong done = 0;

	while (done < line->size) {
		long n = system_call(NR_write, channel_fd, (long)(line->bytes + done), (long)(line->size - done), 0);

		if (n <= 0)
			return 0;
		done += (ulong)n;
	}
	return 1;
}

static void open_record(struct text *line, const char *verb, const char *name)
{
	line->size = 0;
	add(line, channel->prefix);
	add(line, "klto:");
	add(line, nonce);
	add(line, " ");
	add_number(line, sequence);
	add(line, " ");
	add(line, verb);
	add(line, " ");
	add(line, name);
}

static int close_record(struct text *line)
{
	add(line, " :");
	add(line, nonce);
	add(line, "\n");
	sequence++;
	return put(line);
}

static int record(const char *verb, const char *name, const char *text)
{
	struct text line;

	open_record(&line, verb, name);
	if (*text) {
		add(&line, " ");
		add_printable(&line, text);
	}
	return close_record(&line);
}

/* Take the first channel that opens and accepts a record. */
static int choose_channel(void)
{
	for (ulong i = 0; i < sizeof(channels) / sizeof(channels[0]); i++) {
		channel = &channels[i];
		channel_fd = open_file(channel->path, O_WRONLY | O_NOCTTY);
		if (channel_fd < 0)
			continue;
		sequence = 0;
		if (record("hello", channel->name, ""))
			return 1;
		system_call(NR_close, channel_fd, 0, 0, 0);
	}
	return 0;
}

/* ---- proofs ----------------------------------------------------------------------------------- */

enum status { PASSED, FAILED, NOT_APPLICABLE };
static const char *const status_names[] = { "passed", "failed", "not-applicable" };

/* Why a proof failed or does not apply; the proof sets it. */
static const char *reason;

static enum status fail(const char *why)
{
	reason = why;
	return FAILED;
}

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
	system_call(NR_close, null, 0, 0, 0);
	record("fact", "init release", name.release);
	record("fact", "init version", name.version);
	record("fact", "init machine", name.machine);
	open_record(&line, "fact", "init cpus ");
	add_number(&line, count_cpus());
	close_record(&line);
	return PASSED;
}

static const struct proof {
	const char *name;
	enum status (*run)(void);
} proofs[] = {
	{ "init", prove_init },
};

static enum status run_proof(const char *name)
{
	for (ulong i = 0; i < sizeof(proofs) / sizeof(proofs[0]); i++)
		if (same(proofs[i].name, name))
			return proofs[i].run();
	reason = "this init does not know the proof";
	return NOT_APPLICABLE;
}

static void prove(const char *name)
{
	struct text line;
	enum status status;

	record("begin", name, "");
	reason = "";
	status = run_proof(name);
	open_record(&line, "end", name);
	add(&line, " ");
	add(&line, status_names[status]);
	add(&line, *reason ? " " : "");
	add_printable(&line, reason);
	close_record(&line);
}

/* ---- the plan --------------------------------------------------------------------------------- */

static char plan[4096];

/* Fill `plan`, NUL-terminated; its length, 0 when it cannot be read. */
static ulong read_plan(void)
{
	long fd = open_file("/klto/plan", O_RDONLY), n;
	ulong size = 0;

	if (fd < 0)
		return 0;
	while ((n = system_call(NR_read, fd, (long)(plan + size), (long)(sizeof(plan) - 1 - size), 0)) > 0)
		size += (ulong)n;
	system_call(NR_close, fd, 0, 0, 0);
	return size;
}

/* Cut the next line off; the part behind its keyword, or 0 when there is no such line. */
static const char *next_line(char **rest, const char *keyword)
{
	char *line = *rest, *end = line;

	while (*end && *end != '\n')
		end++;
	*rest = *end ? end + 1 : end;
	*end = '\0';
	while (*keyword && *line == *keyword)
		line++, keyword++;
	return *keyword ? 0 : line;
}

/* x86 without ACPI or APM has no power-off, but every machine can restart; QEMU ends then (-no-reboot). */
static void end_guest(void)
{
	system_call(NR_ioctl, channel_fd, TCSBRK, 1, 0); /* tcdrain(3): wait until all is sent */
	system_call(NR_sync, 0, 0, 0, 0);
	system_call(NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0);
	system_call(NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
	for (;;) /* to return would be a panic; klto stops QEMU */
		sleep_milliseconds(1000);
}

void klto_main(void)
{
	char *rest = plan;
	const char *name;

	if (read_plan())
		nonce = next_line(&rest, "nonce ");
	if (!nonce)
		nonce = "no-plan";
	if (choose_channel()) {
		while (*rest)
			if ((name = next_line(&rest, "proof ")))
				prove(name);
		record("done", channel->name, "");
	}
	end_guest();
}
