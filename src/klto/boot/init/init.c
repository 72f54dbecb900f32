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
 *     sequence <number of the first record>    (only in a kernel that kexec has started)
 *     proof <name>
 *     <lines that this proof understands: see its function>
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
 * into `proofs`, and describe it in klto/boot/catalog.py. Init does and reports; what it means klto judges.
 */

#include "kernel.h"
#include "text.h"
#include "channel.h"
#include "steps.h"
#include "proofs.h"
#include "el2.h"

static const struct proof {
	const char *name;
	enum status (*run)(void);
} proofs[] = {
	{ "init", prove_init },
	{ "initcalls", prove_initcalls },
	{ "config", prove_config },
	{ "modules", prove_modules },
	{ "trim", prove_trim },
	{ "livepatch-names", prove_names },
	{ "el2", prove_el2 },
	{ "cfi", prove_cfi },
	{ "kexec", prove_kexec },
	{ "kexec-end", prove_kexec_end },
};

static enum status run_proof(const char *name)
{
	for (ulong i = 0; i < sizeof(proofs) / sizeof(proofs[0]); i++)
		if (same(proofs[i].name, name))
			return proofs[i].run();
	return not_applicable("this init does not know the proof");
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

/* x86 without ACPI or APM has no power-off, but every machine can restart; QEMU ends then (-no-reboot). */
static void end_guest(void)
{
	system_call(NR_ioctl, channel_fd, TCSBRK, 1, 0); /* tcdrain(3): wait until all is sent */
	system_call(NR_sync, 0, 0, 0, 0);
	system_call(NR_reboot, (long)LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0);
	system_call(NR_reboot, (long)LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
	for (;;) /* to return would be a panic; klto stops QEMU */
		sleep_milliseconds(1000);
}

void klto_main(void)
{
	static char plan[1 << 20];
	const char *name, *number;

	plan_rest = plan;
	if (read_file("/klto/plan", plan, sizeof(plan)) > 0)
		nonce = next_line("nonce ");
	if (!nonce)
		nonce = "no-plan";
	if ((number = next_line("sequence ")))
		first_sequence = to_number(number);
	if (choose_channel()) {
		while (*plan_rest)
			if ((name = next_line("proof ")))
				prove(name);
			else
				skip_line();
		record("done", channel->name, "");
	}
	end_guest();
}
