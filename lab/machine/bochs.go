package machine

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
)

// Memory of each machine in MiB, and of its control domain.
const (
	BochsMemory       = 1024
	BochsDebianMemory = 1536
	QEMUMemory        = 3072
	Dom0Memory        = 512
	Dom0DebianMemory  = 768
)

// Bochs is an Intel machine.
type Bochs struct {
	Tree    string // the folder of Bochs' packages
	Program string // Bochs itself
	Memory  int    // MiB
	Disk    string // boots from it; a killed Bochs leaves a .lock beside it
	System  string // a disk that is never written, "" for none
	Lab     string // a further disk, "" for none
	Dir     string // for its configuration and log; must exist
}

// The disks as the control domain names them.
const (
	BochsSystem = "/dev/sdb"
	BochsLab    = "/dev/sdc"
)

// bochsrc: the processor is the newest model whose VMX Xen gets along with
// (skylake_x: VMLAUNCH fails; arrow_lake: dom0 hangs). Time counts instructions,
// so a run repeats itself exactly. Errors are ignored because Bochs reports
// each unknown MSR as one.
var bochsrc = template.Must(template.New("bochsrc").Parse(`config_interface: textconfig
display_library: term
memory: guest={{.Memory}}, host={{.Memory}}
romimage: file={{.Share}}/BIOS-bochs-latest, options=fastboot
vgaromimage: file={{.Share}}/VGABIOS-lgpl-latest
cpu: model=corei7_haswell_4770, count=1, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1, cpuid_limit_winnt=0
clock: sync=none, time0=946681200, rtc_sync=0
pci: enabled=1, chipset=i440fx
boot: disk
floppy_bootsig_check: disabled=1
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, mode=flat, path={{.Disk}}, cylinders=0
{{with .System}}ata0-slave: type=disk, mode=volatile, path={{.}}, journal={{$.Dir}}/system.redolog, cylinders=0
{{end}}{{with .Lab}}ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=disk, mode=flat, path={{.}}, cylinders=0
{{else}}ata1: enabled=0
{{end}}com1: enabled=1, mode=file, dev={{.Console}}
port_e9_hack: enabled=1
private_colormap: enabled=0
vga: extension=none, update_freq=1, realtime=0
mouse: enabled=0
keyboard: type=mf, serial_delay=250
sound: driver=dummy
speaker: enabled=0
log: {{.Dir}}/bochs.log
logprefix: %t%e%d
debug: action=ignore
info: action=ignore
error: action=ignore
panic: action=report
`))

// Command writes the machine's configuration and returns how to start it.
func (b Bochs) Command() (Command, error) {
	lib := filepath.Join(b.Tree, "usr/lib/x86_64-linux-gnu")
	var text bytes.Buffer
	err := bochsrc.Execute(&text, map[string]string{
		"Memory":  strconv.Itoa(b.Memory),
		"Share":   filepath.Join(b.Tree, "usr/share/bochs"),
		"Disk":    b.Disk,
		"System":  b.System,
		"Lab":     b.Lab,
		"Console": ConsolePath,
		"Dir":     b.Dir,
	})
	if err != nil {
		return Command{}, err
	}
	rc, start := filepath.Join(b.Dir, "bochsrc"), filepath.Join(b.Dir, "debugger")
	if err := os.WriteFile(rc, text.Bytes(), 0o644); err != nil {
		return Command{}, err
	}
	// Debian builds Bochs with its debugger, which waits for "continue".
	if err := os.WriteFile(start, []byte("c\n"), 0o644); err != nil {
		return Command{}, err
	}
	return Command{
		Path: filepath.Join(lib, "ld-linux-x86-64.so.2"),
		Args: []string{"--library-path", lib, b.Program, "-q", "-f", rc, "-rc", start},
		Env: []string{
			"LTDL_LIBRARY_PATH=" + filepath.Join(lib, "bochs/plugins"),
			// It draws on a terminal of its own; see drainTerminal.
			"TERM=xterm",
		},
		Dir:             b.Dir,
		ResultsOnStdout: true, // where Bochs' port_e9_hack puts them
		Terminal:        true,
	}, nil
}
