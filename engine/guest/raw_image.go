package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/xen-hvi/hvi/engine/x86"
)

// ErrOutside: a physical range is not part of a memory image.
var ErrOutside = errors.New("outside the memory image")

// RangeError names a physical range that a [RawImage] does not hold. It matches
// [ErrOutside].
type RangeError struct {
	Phys x86.PhysAddr
	Len  int
	// Size is the size of the image in bytes.
	Size int64
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("read %d bytes at physical %v: %v of %d bytes", e.Len, e.Phys, ErrOutside, e.Size)
}

// Unwrap returns ErrOutside.
func (e *RangeError) Unwrap() error { return ErrOutside }

// RawImage is a flat dump: byte n of it is byte n of the guest's physical
// memory, as QEMU's pmemsave writes it. It implements [Memory] and
// [WordReader] and is safe for concurrent use.
type RawImage struct {
	data []byte // held in memory, or nil
	file io.ReaderAt
	size int64
	stop io.Closer
}

// NewRawImage makes an image of bytes it borrows: changes show through.
func NewRawImage(data []byte) *RawImage {
	return &RawImage{data: data, size: int64(len(data))}
}

// OpenRawImage opens a dump file. It is read as needed, so that a dump larger
// than memory is no burden; Close it when done. Errors are those of package os.
func OpenRawImage(path string) (*RawImage, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &os.PathError{Op: "open memory image", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &RawImage{file: f, size: st.Size(), stop: f}, nil
}

// Size is the image's length in bytes.
func (m *RawImage) Size() int64 { return m.size }

// Close closes the file behind the image, if there is one.
func (m *RawImage) Close() error {
	if m.stop == nil {
		return nil
	}
	return m.stop.Close()
}

// ReadPhys implements [Memory]. A range not wholly inside is a [*RangeError].
func (m *RawImage) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if uint64(pa) > uint64(m.size) || uint64(len(buf)) > uint64(m.size)-uint64(pa) {
		return &RangeError{Phys: pa, Len: len(buf), Size: m.size}
	}
	if m.file == nil {
		copy(buf, m.data[pa:])
		return nil
	}
	_, err := m.file.ReadAt(buf, int64(pa))
	return err
}

// ReadPhysUint64 implements [WordReader].
func (m *RawImage) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	if m.file == nil {
		if uint64(pa) > uint64(m.size) || uint64(m.size)-uint64(pa) < 8 {
			return 0, &RangeError{Phys: pa, Len: 8, Size: m.size}
		}
		return binary.LittleEndian.Uint64(m.data[pa:]), nil
	}
	b := wordBufs.Get().(*[8]byte)
	err := m.ReadPhys(pa, b[:])
	v := binary.LittleEndian.Uint64(b[:])
	wordBufs.Put(b)
	return v, err
}
