// SPDX-License-Identifier: MIT
/* ---- el2: a guest of a few instructions under the kernel's own KVM (arm64) ------------------------ */

#if defined(__aarch64__)

/* include/uapi/linux/kvm.h and arch/arm64/include/uapi/asm/kvm.h. _IOC numbers: KVMIO is 0xAE. */
#define KVM_GET_API_VERSION 0xAE00L
#define KVM_CREATE_VM 0xAE01L
#define KVM_GET_VCPU_MMAP_SIZE 0xAE04L
#define KVM_CREATE_VCPU 0xAE41L
#define KVM_RUN 0xAE80L
#define KVM_SET_USER_MEMORY_REGION 0x4020AE46L
#define KVM_SET_ONE_REG 0x4010AEACL
#define KVM_ARM_VCPU_INIT 0x4020AEAEL
#define KVM_ARM_PREFERRED_TARGET 0x8020AEAFL
#define KVM_REG_ARM64_CORE_PC 0x6030000000100040UL /* core register regs.pc, 64 bits */
enum { KVM_API_VERSION = 12, KVM_EXIT_MMIO = 6 };

struct kvm_userspace_memory_region {
	unsigned int slot, flags;
	ulong guest_phys_addr, memory_size, userspace_addr;
};
struct kvm_vcpu_init {
	unsigned int target, features[7];
};
struct kvm_one_reg {
	ulong id, addr;
};
/* The first bytes of struct kvm_run, with the member of its union for KVM_EXIT_MMIO. */
struct kvm_run {
	unsigned char request_interrupt_window, immediate_exit, padding1[6];
	unsigned int exit_reason;
	unsigned char ready_for_interrupt_injection, if_flag;
	unsigned short flags;
	ulong cr8, apic_base;
	ulong phys_addr;
	unsigned char data[8];
	unsigned int len;
	unsigned char is_write;
};

enum { GUEST_MEMORY = 0x40000000, GUEST_BYTES = 1 << 16, GUEST_DEVICE = 0x10000000, GUEST_VALUE = 0x6b6c };

/* Writes a number to where no memory is, which KVM hands to us, then the number after it. */
static const unsigned int guest_code[] = {
	0xD2A20001, /* movz x1, #0x1000, lsl #16 */
	0x528D6D80, /* movz w0, #0x6b6c */
	0xB9000020, /* str w0, [x1] */
	0x11000400, /* add w0, w0, #1 */
	0xB9000020, /* str w0, [x1] */
	0x14000000, /* b . */
};

/* Enter the guest; whether it came back with this number. */
static int guest_writes(long vcpu, const volatile struct kvm_run *run, unsigned int number)
{
	unsigned int written = 0;

	if (system_call(NR_ioctl, vcpu, KVM_RUN, 0, 0) < 0 || run->exit_reason != KVM_EXIT_MMIO)
		return 0;
	for (int i = 3; i >= 0; i--)
		written = written << 8 | run->data[i];
	return run->is_write && run->phys_addr == GUEST_DEVICE && run->len == 4 && written == number;
}

static enum status run_guest(long kvm)
{
	enum { PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1, MAP_ANONYMOUS = 0x20 };
	long vm = system_call(NR_ioctl, kvm, KVM_CREATE_VM, 0, 0), vcpu, memory, run;
	long size = system_call(NR_ioctl, kvm, KVM_GET_VCPU_MMAP_SIZE, 0, 0);
	struct kvm_vcpu_init target;
	ulong pc = GUEST_MEMORY;
	struct kvm_one_reg reg = { KVM_REG_ARM64_CORE_PC, (ulong)&pc };
	struct kvm_userspace_memory_region region = { 0, 0, GUEST_MEMORY, GUEST_BYTES, 0 };

	memset(&target, 0, sizeof(target));
	if (vm < 0 || size <= 0)
		return fail("KVM_CREATE_VM failed");
	memory = system_call6(NR_mmap, 0, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory < 0 && memory > -4096)
		return fail("no memory for the guest");
	memcpy((void *)memory, guest_code, sizeof(guest_code));
	/* KVM makes the guest's instruction cache see it (arch/arm64/kvm/mmu.c, invalidate_icache_guest_page). */
	region.userspace_addr = (ulong)memory;
	if (system_call(NR_ioctl, vm, KVM_SET_USER_MEMORY_REGION, (long)&region, 0) < 0)
		return fail("KVM_SET_USER_MEMORY_REGION failed");
	vcpu = system_call(NR_ioctl, vm, KVM_CREATE_VCPU, 0, 0);
	if (vcpu < 0)
		return fail("KVM_CREATE_VCPU failed");
	run = system_call6(NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run < 0 && run > -4096)
		return fail("cannot map the virtual CPU");
	if (system_call(NR_ioctl, vm, KVM_ARM_PREFERRED_TARGET, (long)&target, 0) < 0 ||
	    system_call(NR_ioctl, vcpu, KVM_ARM_VCPU_INIT, (long)&target, 0) < 0)
		return fail("KVM_ARM_VCPU_INIT failed");
	if (system_call(NR_ioctl, vcpu, KVM_SET_ONE_REG, (long)&reg, 0) < 0)
		return fail("KVM_SET_ONE_REG failed");
	if (!guest_writes(vcpu, (void *)run, GUEST_VALUE))
		return fail("the guest did not do what its code says");
	if (!guest_writes(vcpu, (void *)run, GUEST_VALUE + 1))
		return fail("the guest did not go on where it was");
	record("fact", "el2 guest", "ran under KVM, entered twice");
	return PASSED;
}

static enum status prove_el2(void)
{
	long kvm = open_file("/dev/kvm", O_RDWR);

	if (kvm < 0)
		return fail("KVM is not there: /dev/kvm cannot be opened");
	if (system_call(NR_ioctl, kvm, KVM_GET_API_VERSION, 0, 0) != KVM_API_VERSION)
		return fail("KVM_GET_API_VERSION failed");
	return run_guest(kvm);
}

#else

static enum status prove_el2(void)
{
	return not_applicable("needs arm64");
}

#endif
