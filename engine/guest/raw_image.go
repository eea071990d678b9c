package guest

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// ErrOutside: a physical range is not part of a memory image.
var ErrOutside = errors.New("outside the memory image")

// RangeError names a physical range that a memory image does not hold. It
// matches [ErrOutside].
type RangeError struct {
	Phys x86.PhysAddr
	Len  int
	// Size is how much memory the image holds, in bytes.
	Size uint64
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("read %d bytes at physical %v: %v of %d bytes", e.Len, e.Phys, ErrOutside, e.Size)
}

// Unwrap returns ErrOutside.
func (e *RangeError) Unwrap() error { return ErrOutside }

// RawImage is physical memory in a slice: byte n of it is at address n. It
// implements [Memory], [WordReader] and [DirectReader] and is safe for
// concurrent use. Files are package dump's.
type RawImage struct{ direct Direct }

// NewRawImage makes an image of bytes it borrows: changes show through.
func NewRawImage(data []byte) *RawImage { return &RawImage{Direct{Data: data}} }

// Size is the image's length in bytes.
func (m *RawImage) Size() uint64 { return uint64(len(m.direct.Data)) }

// Direct implements [DirectReader].
func (m *RawImage) Direct() *Direct { return &m.direct }

// ReadPhys implements [Memory]. A range not wholly inside is a [*RangeError].
func (m *RawImage) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if uint64(pa) > m.Size() || uint64(len(buf)) > m.Size()-uint64(pa) {
		return &RangeError{Phys: pa, Len: len(buf), Size: m.Size()}
	}
	copy(buf, m.direct.Data[pa:])
	return nil
}

// ReadPhysUint64 implements [WordReader].
func (m *RawImage) ReadPhysUint64(pa x86.PhysAddr) (uint64, error) {
	v, ok := m.direct.word(pa)
	if !ok {
		return 0, &RangeError{Phys: pa, Len: 8, Size: m.Size()}
	}
	return v, nil
}
