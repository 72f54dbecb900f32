// SPDX-License-Identifier: MIT
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
/* Number of the next record. A kernel that another one has started goes on where the plan says. */
static ulong sequence, first_sequence;

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
		sequence = first_sequence;
		if (record("hello", channel->name, ""))
			return 1;
		close_file(channel_fd);
	}
	return 0;
}

/* A record of a proof's that says: KEY NUMBER. */
static void fact_number(const char *proof, const char *key, long number)
{
	struct text line;

	open_record(&line, "fact", proof);
	add(&line, " ");
	add_printable(&line, key);
	add(&line, " ");
	add_error(&line, number);
	close_record(&line);
}
