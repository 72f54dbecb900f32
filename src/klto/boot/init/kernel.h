// SPDX-License-Identifier: MIT
/* The kernel's interface: system calls and their numbers. */

typedef unsigned long ulong;

#if defined(__x86_64__)
/* arch/x86/entry/syscalls/syscall_64.tbl */
enum { NR_read = 0, NR_write = 1, NR_close = 3, NR_mmap = 9, NR_ioctl = 16, NR_nanosleep = 35, NR_getpid = 39,
       NR_uname = 63, NR_sync = 162, NR_mount = 165, NR_reboot = 169, NR_delete_module = 176,
       NR_sched_getaffinity = 204, NR_openat = 257, NR_finit_module = 313, NR_kexec_file_load = 320 };

static long system_call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory", "cc");
	return result;
}

/* The stack is 16-byte aligned at entry, and a function expects it so before the call (psABI 3.4.1, 3.2.2). */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall klto_main\n\thlt\n");

#elif defined(__aarch64__)
/* include/uapi/asm-generic/unistd.h */
enum { NR_ioctl = 29, NR_mount = 40, NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_sync = 81,
       NR_nanosleep = 101, NR_delete_module = 106, NR_sched_getaffinity = 123, NR_reboot = 142, NR_uname = 160,
       NR_getpid = 172, NR_mmap = 222, NR_finit_module = 273, NR_kexec_file_load = 294 };

static long system_call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory", "cc");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tbl klto_main\n\tbrk #1\n");

#else
#error "klto's init knows x86_64 and aarch64"
#endif

static long system_call(long number, long a, long b, long c, long d)
{
	return system_call6(number, a, b, c, d, 0, 0);
}

/* include/uapi/asm-generic/errno-base.h and errno.h */
enum { ENOENT = 2, ENODEV = 19, EPIPE = 32, ENOSYS = 38 };
enum { AT_FDCWD = -100 };                                   /* include/uapi/linux/fcntl.h */
/* include/uapi/asm-generic/fcntl.h */
enum { O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_NOCTTY = 0400, O_NONBLOCK = 04000 };
enum { TCSBRK = 0x5409 };                                   /* include/uapi/asm-generic/ioctls.h */

/* include/uapi/linux/reboot.h */
#define LINUX_REBOOT_MAGIC1 0xfee1deadL
#define LINUX_REBOOT_MAGIC2 672274793L
#define LINUX_REBOOT_CMD_RESTART 0x01234567L
#define LINUX_REBOOT_CMD_POWER_OFF 0x4321FEDCL
#define LINUX_REBOOT_CMD_KEXEC 0x45584543L

/* include/uapi/linux/utsname.h, struct new_utsname */
struct utsname {
	char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
};

static void close_file(long fd)
{
	system_call(NR_close, fd, 0, 0, 0);
}

/* Mount a file system that has no device; whether it is there. Twice does no harm. */
static int mounted(const char *type, const char *where)
{
	enum { EBUSY = 16 };
	long result = system_call6(NR_mount, (long)type, (long)where, (long)type, 0, 0, 0);

	return result == 0 || result == -EBUSY;
}

static long open_file(const char *path, long flags)
{
	return system_call(NR_openat, AT_FDCWD, (long)path, flags, 0);
}

static void sleep_milliseconds(long milliseconds)
{
	long time[2] = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	system_call(NR_nanosleep, (long)time, 0, 0, 0);
}
