package scenario

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// TypeHVM is [GuestConfig.Type] of a guest with a device model.
const TypeHVM = "hvm"

// Where the device model puts what an HVM guest boots, twins of
// lab/image/files/hvm.c.
const (
	hvmMagic     = 0x31495648
	hvmAddress   = 0x300000  // of hvmParams
	hvmRamdisk   = 0x6000000 // above a Linux kernel
	hvmCmdline   = "i8042.nokbd i8042.noaux 8250.nr_uarts=0"
	hvmFolder    = "/run/hvi-lab"
	cmdlineBytes = 2048
)

// hvmParams is struct params of lab/image/files/hvm.c.
type hvmParams struct {
	Magic, PVH, Entry, Ramdisk, RamdiskSize uint32
	Cmdline                                 [cmdlineBytes]byte
}

func (c GuestConfig) kernel() (file string, tiny bool) {
	if c.Kernel == KernelTiny {
		return TinyKernel, true
	}
	return GuestKernel, false
}

// hvmFile returns where a file of the guest's own is, by its kind.
func (c GuestConfig) hvmFile(kind string) string {
	return filepath.Join(hvmFolder, c.name()+"."+kind)
}

// writeHVM writes the lines of an HVM guest's config that take the place of a
// PVH guest's kernel.
func (c GuestConfig) writeHVM(line func(string, ...any)) {
	kernel, tiny := c.kernel()
	line("type = \"hvm\"")
	line("disk = [ %q ]", "format=raw,vdev=hda,access=rw,target="+c.hvmFile("img"))
	line("boot = \"c\"")
	line("vga = \"none\"")
	line("vnc = 0")
	line("nographic = 1")
	line("usb = 0")
	loaders := []string{"file=" + kernel, fmt.Sprintf("file=%s,addr=%#x,force-raw=on", c.hvmFile("params"), hvmAddress)}
	if !tiny {
		loaders = append(loaders, fmt.Sprintf("file=%s,addr=%#x,force-raw=on", GuestRamdisk, hvmRamdisk))
	}
	var args []string
	for _, l := range loaders {
		args = append(args, fmt.Sprintf("%q, %q", "-device", "loader,"+l))
	}
	line("device_model_args_hvm = [ %s ]", strings.Join(args, ", "))
}

// writeHVMFiles writes what the lines of writeHVM name: the guest's disk, and
// how to start its kernel. They are removed after Run.
func (t *T) writeHVMFiles(c GuestConfig) error {
	kernel, tiny := c.kernel()
	f, err := elf.Open(kernel)
	if err != nil {
		return fmt.Errorf("%s: %w", kernel, err)
	}
	p := hvmParams{Magic: hvmMagic, Entry: uint32(f.Entry)}
	if err := f.Close(); err != nil {
		return err
	}
	text := strings.Join(c.KernelArgs, " ")
	if tiny {
		p.PVH = 1
	} else {
		st, err := os.Stat(GuestRamdisk)
		if err != nil {
			return err
		}
		p.Ramdisk, p.RamdiskSize = hvmRamdisk, uint32(st.Size())
		text = strings.Join(append([]string{guestCmdline, hvmCmdline}, c.KernelArgs...), " ")
	}
	if copy(p.Cmdline[:cmdlineBytes-1], text) < len(text) {
		return fmt.Errorf("the kernel command line of %s has %d bytes, more than %d", c.name(), len(text), cmdlineBytes-1)
	}
	var params bytes.Buffer
	if err := binary.Write(&params, binary.LittleEndian, p); err != nil {
		return err
	}
	disk, err := os.ReadFile(HVMDisk)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(hvmFolder, 0o755); err != nil {
		return err
	}
	for kind, data := range map[string][]byte{"img": disk, "params": params.Bytes()} {
		if err := os.WriteFile(c.hvmFile(kind), data, 0o600); err != nil {
			return err
		}
		t.Cleanup(func() { os.Remove(c.hvmFile(kind)) })
	}
	return nil
}
