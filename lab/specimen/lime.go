package specimen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/xen-hvi/hvi/lab/machine"
)

// addLiME gives a machine the module in its ramdisk, and a disk for the image.
func (m Maker) addLiME(ctx context.Context, l *Live, pc *machine.PC) error {
	archive, err := m.Builder.LiME(ctx, l.Variant.Kernel)
	if err != nil {
		return err
	}
	ramdisk := filepath.Join(l.run, "ramdisk")
	if err := join(ramdisk, pc.Ramdisk, archive); err != nil { // the kernel unpacks one after the other
		return err
	}
	pc.Ramdisk = ramdisk
	l.lime = disk{fmt.Sprintf("/dev/vd%c", 'a'+len(pc.Disks)), filepath.Join(l.run, "lime")}
	const headers = 1 << 20
	if err := sparse(l.lime.file, int64(l.Variant.memory())<<20+headers); err != nil {
		return err
	}
	pc.Disks = append(pc.Disks, l.lime.file)
	return nil
}

// LiME has LiME in the guest write its memory to a disk, while it runs, and
// copies that to a file. The module stays loaded.
func (l *Live) LiME(ctx context.Context, to string) error {
	if l.lime.name == "" {
		return errors.New("the guest was started without LiME")
	}
	// Without a limit: LiME leaves out a page that takes a second, which on an
	// emulated machine is no sign that the page is bad.
	if _, err := l.control.doWithin(ctx, limeLimit, "load lime path="+l.lime.name+" format=lime timeout=0"); err != nil {
		return err
	}
	if err := copySparse(to, l.lime.file); err != nil {
		return err
	}
	size, err := limeSize(to)
	if err != nil {
		return err
	}
	return os.Truncate(to, size) // the rest of the disk
}

// limeLimit is how long LiME may take, which writes page after page.
const limeLimit = 15 * time.Minute

// limeSize returns where the last range of a LiME image ends.
func limeSize(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for at := int64(0); ; {
		var header [32]byte // magic, version, first and last address
		if n, err := f.ReadAt(header[:], at); n < len(header) && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !bytes.HasPrefix(header[:], []byte("EMiL")) {
			if at == 0 {
				return 0, fmt.Errorf("LiME wrote no range: %x", header)
			}
			return at, nil
		}
		first, last := binary.LittleEndian.Uint64(header[8:]), binary.LittleEndian.Uint64(header[16:])
		const most = 1 << 40
		if last < first || last-first >= most {
			return 0, fmt.Errorf("LiME wrote a range from %#x to %#x", first, last)
		}
		at += int64(len(header)) + int64(last-first) + 1
	}
}

// join writes files one after the other.
func join(to string, from ...string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for _, name := range from {
		in, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		if err = errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	return nil
}
