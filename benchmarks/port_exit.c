/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The peer of port_exit.py: the same guest, its port writes served in C.
 *
 * usage: port_exit COUNT
 * Prints the nanoseconds one port write took, and the sum of the bytes written.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define CODE 0x1000
#define RAM_SIZE 0x4000

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	uint32_t count = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000;
	/* mov ecx, count; again: out 0x80, al; inc al; dec ecx; jnz again; hlt */
	uint8_t code[] = { 0x66, 0xb9, 0, 0, 0, 0, 0xe6, 0x80, 0xfe, 0xc0,
			   0x66, 0x49, 0x75, 0xf8, 0xf4 };
	struct kvm_userspace_memory_region region = { .memory_size = RAM_SIZE };
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	struct timespec start, end;
	uint64_t sum = 0;

	memcpy(code + 2, &count, sizeof(count));
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		fail("/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(ram + CODE, code, sizeof(code));
	region.userspace_addr = (uintptr_t)ram;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		fail("KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		fail("KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
				   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.selector = CODE >> 4;
	sregs.cs.base = CODE;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0)
		fail("KVM_SET_SREGS");
	if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		fail("KVM_SET_REGS");

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0)
			fail("KVM_RUN");
		if (run->exit_reason == KVM_EXIT_HLT)
			break;
		if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT) {
			fprintf(stderr, "exit reason %u\n", run->exit_reason);
			return 1;
		}
		sum += *((uint8_t *)run + run->io.data_offset);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	double ns = (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
	printf("%.1f %llu\n", ns / count, (unsigned long long)sum);
	return 0;
}
