package image

import "context"

// Bochs is an emulator of Intel processors.
type Bochs struct {
	Tree    string // the folder of its packages
	Program string // the program to run
	// Preempts tells that Program lets an interrupt end a guest's turn that has
	// interrupts disabled. Debian 13's does not unless it is changed.
	Preempts bool
}

// entered is where Bochs 3.0 notes that a guest was entered (VMLAUNCH and VMRESUME,
// cpu/vmx.cc), as compiled: an and of BX_CPU_C::event_mask, by which INIT is let
// through, the note itself (in_vmx_guest), and a jump around the one that has pending
// events looked at (async_event) if there is an INIT among them.
//
// By then it has worked out which events the guest's RFLAGS.IF holds back, as for code
// that is no guest's. But with external-interrupt exiting, which Xen asks for, the flag
// holds back none. So a guest that is entered with interrupts disabled and keeps them
// so was never interrupted: one that waited so for another of its vCPUs, as Linux does
// while it starts them, stood still for ever, and the control domain with it.
var entered = []byte{
	0x83, 0xa3, 0xdc, 0x91, 0x00, 0x00, 0xfb, // andl ~BX_EVENT_INIT, event_mask
	0xc6, 0x83, 0xb9, 0x8e, 0x00, 0x00, 0x01, // movb 1, in_vmx_guest
	0xf6, 0x83, 0xd8, 0x91, 0x00, 0x00, 0x04, // testb BX_EVENT_INIT, pending_event
	0x74, 0x0a,
	0xc7, 0x83, 0xe0, 0x91, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // movl 1, async_event
}

// enteredPreemptible is the same with the interrupts of the PIC and the APIC let
// through, too, and pending events looked at in any case.
var enteredPreemptible = []byte{
	0x81, 0xa3, 0xdc, 0x91, 0x00, 0x00, 0xfb, 0xf3, 0xff, 0xff, // and BX_EVENT_PENDING_INTR, BX_EVENT_PENDING_LAPIC_INTR
	0xc6, 0x83, 0xb9, 0x8e, 0x00, 0x00, 0x01,
	0xc7, 0x83, 0xe0, 0x91, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
	0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, // nopw 0(%rax,%rax)
}

// fixEntered puts that in a program, in place, and tells whether it found the one
// place.
func fixEntered(program []byte) bool {
	at, ok := one(program, entered)
	if ok {
		copy(program[at:], enteredPreemptible)
	}
	return ok
}

// Bochs builds the Intel machine's emulator.
func (b *Builder) Bochs(ctx context.Context) (Bochs, error) {
	tree, err := b.tree(ctx, treeBochs)
	if err != nil {
		return Bochs{}, err
	}
	program, fixed, err := b.mended(ctx, "bochs", tree, "usr/bin/bochs-bin", []fix{{"preempts", fixEntered}})
	if err != nil {
		return Bochs{}, err
	}
	return Bochs{Tree: tree, Program: program, Preempts: fixed[0]}, nil
}
