package machine

import (
	"path/filepath"
	"strconv"
	"strings"
)

// PC is an ordinary machine without virtualization: QEMU as a plain computer
// that boots a Linux kernel by itself.
type PC struct {
	Tree    string // the folder of QEMU's packages
	Program string
	Dir     string // working directory, for the sockets as well; must exist

	Kernel  string // a bzImage
	Args    string // its command line
	Ramdisk string

	// CPU is QEMU's processor model: "qemu64", or "max", which has five-level
	// paging.
	CPU    string
	VCPUs  int
	Memory int      // MiB, less than 2048: then it is one piece from address 0
	Shared bool     // others may map its memory while it runs: [Machine.Memory]
	Disks  []string // raw files, written to; the guest's /dev/vda and so on
}

// Sockets of a [PC], in its Dir.
const (
	monitorSocket = "monitor" // QMP
	controlSocket = "control" // the guest's second serial port, /dev/ttyS1
)

// Command returns how to start the machine. It has no results port: what the
// guest has to tell goes to its disks and its second serial port.
func (p PC) Command() Command {
	c := qemu(p.Tree, p.Program, p.Dir)
	board := "q35"
	if p.Shared {
		// Of no file system: nothing is written back, and it is gone with the last
		// who has it open.
		board += ",memory-backend=ram"
		c.Args = append(c.Args, "-object", "memory-backend-memfd,id=ram,share=on,size="+strconv.Itoa(p.Memory)+"M")
	}
	c.Args = append(c.Args,
		"-M", board, "-accel", "tcg,thread=multi,tb-size=256", "-cpu", p.CPU,
		"-smp", strconv.Itoa(p.VCPUs), "-m", strconv.Itoa(p.Memory),
		"-kernel", p.Kernel, "-append", p.Args, "-initrd", comma.Replace(p.Ramdisk),
		"-serial", "file:"+ConsolePath,
		"-serial", "unix:"+controlSocket+",server=on,wait=off",
		"-qmp", "unix:"+monitorSocket+",server=on,wait=off")
	for i, disk := range p.Disks {
		id := "disk" + strconv.Itoa(i)
		c.Args = append(c.Args,
			"-drive", "file="+comma.Replace(disk)+",format=raw,if=none,id="+id,
			"-device", "virtio-blk-pci,drive="+id)
	}
	return c
}

// Monitor returns the path of the monitor's socket.
func (p PC) Monitor() string { return filepath.Join(p.Dir, monitorSocket) }

// Control returns the path of the socket that is the guest's second serial port.
func (p PC) Control() string { return filepath.Join(p.Dir, controlSocket) }

// comma doubles commas: alone, they separate what an option says.
var comma = strings.NewReplacer(",", ",,")

// qemu returns the beginning of a command that starts QEMU from its packages'
// tree.
func qemu(tree, program, dir string) Command {
	lib := filepath.Join(tree, "usr/lib/x86_64-linux-gnu")
	return Command{
		Path: filepath.Join(lib, "ld-linux-x86-64.so.2"),
		Args: []string{
			"--library-path", lib, program,
			"-L", filepath.Join(tree, "usr/share/qemu"), "-L", filepath.Join(tree, "usr/share/seabios"),
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		},
		Env: []string{"QEMU_MODULE_DIR=" + filepath.Join(lib, "qemu")},
		Dir: dir,
	}
}
