package image

import (
	"context"
)

// QEMU is an emulator of AMD processors.
type QEMU struct {
	Tree    string // the folder of its packages
	Program string // the program to run
	// SeesINT3 tells that Program delivers a guest's breakpoints to the
	// hypervisor, InjectsOnce that it delivers an interrupt to a guest once.
	// Debian 12's does neither unless it is changed.
	SeesINT3, InjectsOnce bool
}

// int3Check is where QEMU 7.2 asks whether the hypervisor wants to see an INT3
// (helper_svm_check_intercept_param for SVM_EXIT_SWINT, target/i386): it asks
// for the intercept of INTn, 0x75, in place of exception 3's, 0x43.
var int3Check = []byte{0x31, 0xd2, 0xbe, 0x75, 0x00, 0x00, 0x00, 0xe8}

// fixINT3 corrects that in a program, in place, and tells whether it found the
// one place.
func fixINT3(program []byte) bool {
	at, ok := one(program, int3Check)
	if ok {
		program[at+3] = 0x43
	}
	return ok
}

// injection is where QEMU 7.2 delivers an interrupt that the hypervisor injects
// as a guest is entered (helper_vmrun for SVM_EVTINJ_TYPE_INTR). It does so at
// once, and notes it as an exception that is yet to be delivered besides: a mov of
// 6 bytes to CPUState.exception_index, which no other kind of injection leaves
// behind, followed by two to the exception's further fields. If the emulator then
// has to stop the processor for a moment, it delivers the interrupt again, whatever
// the guest does by then and though it has interrupts disabled.
var injection = []byte{
	0x89, 0xb3, 0x54, 0xef, 0xff, 0xff,
	0xc7, 0x83, 0x84, 0x33, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	0x48, 0xc7, 0x83, 0x88, 0x33, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff,
}

// fixInjection takes that mov out of a program, in place, and tells whether it
// found the one place.
func fixInjection(program []byte) bool {
	at, ok := one(program, injection)
	if ok {
		copy(program[at:], []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}) // nopw 0(%rax,%rax)
	}
	return ok
}

// QEMU builds the AMD machine's emulator.
func (b *Builder) QEMU(ctx context.Context) (QEMU, error) {
	tree, err := b.tree(ctx, treeQEMU)
	if err != nil {
		return QEMU{}, err
	}
	program, fixed, err := b.mended(ctx, "qemu", tree, "usr/bin/qemu-system-x86_64", []fix{{"sees-int3", fixINT3}, {"injects-once", fixInjection}})
	if err != nil {
		return QEMU{}, err
	}
	return QEMU{Tree: tree, Program: program, SeesINT3: fixed[0], InjectsOnce: fixed[1]}, nil
}
