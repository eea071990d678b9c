package machine

import (
	"cmp"
	"strconv"
)

// QEMU is an AMD machine.
type QEMU struct {
	Tree    string // the folder of QEMU's packages
	Program string
	Dir     string // working directory; must exist

	Kernel     string // a multiboot kernel, Xen
	Args       string // its command line
	Module     string // its first module
	ModuleArgs string
	Ramdisk    string // its second module

	Processors int // 0: 2

	System string // a disk that is never written, "" for none
	Lab    string // a further disk, "" for none
}

// The disks as the control domain names them.
const (
	QEMUSystem = "/dev/vda"
	QEMULab    = "/dev/vdb"
)

// qemuProcessors is how many a machine has if nothing else is said: one for the
// control domain, one for its guests.
const qemuProcessors = 2

// Command returns how to start the machine. EPYC and max, in place of the
// processor model here, fault while Xen boots. SMEP, SMAP and UMIP are for guests.
//
// All processors share one thread. With one for each, guests are ended with
// Xen's state in place of theirs, or triple-fault in their own code, or stand still: QEMU's
// helper_vmrun changes a processor's pending interrupts without a lock, for one.
//
// The clock counts instructions, 2 ns for each, of whichever processor, so that two that are
// busy carry out 250 million a second each; it goes on at once while all wait. Neither
// figures nor limits depend on what else the host does. Without
// that one thread gives each processor a tenth of a second while the others wait for its
// answer, and fifty creations of a guest take twenty minutes and not two.
func (q QEMU) Command() Command {
	c := qemu(q.Tree, q.Program, q.Dir)
	c.Args = append(c.Args,
		"-M", "q35", "-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=1,sleep=off", "-cpu", "qemu64,+svm,+npt,+smep,+smap,+umip",
		"-smp", strconv.Itoa(cmp.Or(q.Processors, qemuProcessors)), "-m", strconv.Itoa(QEMUMemory),
		"-kernel", q.Kernel, "-append", q.Args,
		"-initrd", comma.Replace(q.Module+" "+q.ModuleArgs)+","+comma.Replace(q.Ramdisk),
		"-serial", "file:"+ConsolePath, "-debugcon", "file:"+ResultsPath)
	for _, disk := range []string{q.System, q.Lab} {
		if disk != "" {
			id := "disk" + strconv.Itoa(len(c.Args))
			c.Args = append(c.Args,
				"-drive", "file="+comma.Replace(disk)+",format=raw,if=none,readonly=on,id="+id,
				"-device", "virtio-blk-pci,drive="+id)
		}
	}
	return c
}
