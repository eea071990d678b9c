package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// writeChunk is how much is read and written at a time, in bytes.
const writeChunk = 1 << 20

// File is what a memory image is written to. It is empty.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Written counts what of a memory image has been written.
type Written struct {
	// Memory is what was found, Stored what of it was no page of zeros and so takes
	// room in the file; both in bytes.
	Memory, Stored uint64
}

// Source is what a memory image is made of.
type Source struct {
	Memory guest.Memory
	// End is the first frame of those that aren't asked for any more.
	End x86.GFN
	// Absent says of an error of Memory's that there is no page.
	Absent func(error) bool
	// Any reports whether any of n frames is there: guests have gigabytes of address
	// space with nothing in it, and to ask is cheaper than to try.
	Any func(first x86.GFN, n int) (bool, error)
}

// WriteLiME writes memory as a LiME dump. Frames for which a read fails with an error
// that means absent are left out; any other error ends it. Pages of zeros are holes of
// the file. It needs 1 MiB of memory, whatever the guest's size, and calls progress now
// and then, and at the end. The guest must not run, or what is written was never its
// memory at any one moment.
func WriteLiME(ctx context.Context, f File, from Source, progress func(Written)) (Written, error) {
	w := limeWriter{f: f}
	buf := make([]byte, writeChunk)
	for pa, top := x86.PhysAddr(0), from.End.Addr(); pa < top; pa += writeChunk {
		if err := ctx.Err(); err != nil {
			return w.done, err
		}
		b := buf[:min(writeChunk, top-pa)]
		err := from.Memory.ReadPhys(pa, b)
		switch {
		case err == nil:
			err = w.put(pa, b)
		case from.Absent(err):
			var any bool
			if any, err = from.Any(pa.GFN(), len(b)/x86.PageSize); any {
				err = w.pages(pa, b, from)
			}
		}
		if err != nil {
			return w.done, err
		}
		progress(w.done)
	}
	err := w.endRange()
	if err == nil {
		// The last pages may be a hole.
		err = f.Truncate(w.off)
	}
	progress(w.done)
	return w.done, err
}

// limeWriter is a LiME dump as far as it has come.
type limeWriter struct {
	f    File
	off  int64 // where the next byte goes
	done Written
	// header is where that of the range is that is being written, next the address
	// behind what there is of it; first is its beginning. None while next is 0.
	header      int64
	first, next x86.PhysAddr
}

// pages writes those pages of a chunk that are there.
func (w *limeWriter) pages(pa x86.PhysAddr, b []byte, from Source) error {
	for ; len(b) > 0; pa, b = pa+x86.PageSize, b[x86.PageSize:] {
		page := b[:x86.PageSize]
		err := from.Memory.ReadPhys(pa, page)
		if err == nil {
			err = w.put(pa, page)
		} else if from.Absent(err) {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes whole pages.
func (w *limeWriter) put(pa x86.PhysAddr, b []byte) error {
	if w.next != pa || w.next == 0 {
		if err := w.endRange(); err != nil {
			return err
		}
		w.header, w.first = w.off, pa
		w.off += limeHeader
	}
	w.next = pa + x86.PhysAddr(len(b))
	w.done.Memory += uint64(len(b))
	for len(b) > 0 {
		// As many pages at once as are zero, or are not.
		n, zero := x86.PageSize, isZero(b[:x86.PageSize])
		for n < len(b) && isZero(b[n:n+x86.PageSize]) == zero {
			n += x86.PageSize
		}
		if !zero {
			if _, err := w.f.WriteAt(b[:n], w.off); err != nil {
				return err
			}
			w.done.Stored += uint64(n)
		}
		w.off += int64(n)
		b = b[n:]
	}
	return nil
}

// endRange writes the header of the range, whose end is known now.
func (w *limeWriter) endRange() error {
	if w.next == 0 {
		return nil
	}
	h := make([]byte, limeHeader)
	copy(h, limeMagic)
	binary.LittleEndian.PutUint32(h[4:], limeVersion)
	binary.LittleEndian.PutUint64(h[8:], uint64(w.first))
	binary.LittleEndian.PutUint64(h[16:], uint64(w.next)-1)
	w.next = 0
	_, err := w.f.WriteAt(h, w.header)
	return err
}

var zeroPage [x86.PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
