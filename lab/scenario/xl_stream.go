package scenario

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// savedFrames returns the guest frames whose contents are in a file that `xl
// save` wrote, to see that nothing of hvi's travels with a guest. The formats
// are those of docs/specs/libxl-migration-stream and libxc-migration-stream in
// Xen's source, version 2 and 3.
func savedFrames(name string) (map[uint64]bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	frames, err := readFrames(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return frames, nil
}

// Bounds of a saved domain of the lab, whose guests have 256 MiB at most.
const (
	maxSavedConfig = 1 << 20
	maxSavedRecord = 8 << 20 // libxc packs up to 1024 pages into one
)

var errNotSaved = errors.New("not a saved domain")

// Record types and page types.
const (
	libxlLibxc    = 1
	libxcEnd      = 0
	libxcPageData = 1
	pageTypeShift = 60
	firstDataless = 0xd // BROKEN, XALLOC and XTAB have no contents
)

func readFrames(r *bufio.Reader) (map[uint64]bool, error) {
	var xl struct {
		Magic                                    [32]byte
		ByteOrder, Mandatory, Optional, DataSize uint32
	}
	if err := binary.Read(r, binary.LittleEndian, &xl); err != nil {
		return nil, err
	}
	if string(xl.Magic[:]) != "Xen saved domain, xl format\n \x00 \r" || xl.ByteOrder != 0x01020304 || xl.DataSize > maxSavedConfig {
		return nil, fmt.Errorf("%w: xl's header is %q", errNotSaved, xl.Magic)
	}
	if err := skip(r, xl.DataSize); err != nil {
		return nil, err
	}
	var libxl struct {
		Ident            uint64
		Version, Options uint32
	}
	if err := binary.Read(r, binary.BigEndian, &libxl); err != nil {
		return nil, err
	}
	if libxl.Ident != 0x4c6962786c466d74 || libxl.Version != 2 {
		return nil, fmt.Errorf("%w: libxl's header is %x, version %d", errNotSaved, libxl.Ident, libxl.Version)
	}
	for {
		typ, size, err := readRecord(r)
		if err != nil {
			return nil, err
		}
		if typ == libxlLibxc {
			break
		}
		if err := skip(r, padded(size)); err != nil {
			return nil, err
		}
	}
	if err := skip(r, 24+16); err != nil { // libxc's image and domain headers
		return nil, err
	}
	frames := map[uint64]bool{}
	for {
		typ, size, err := readRecord(r)
		if err != nil {
			return nil, err
		}
		rest := padded(size)
		switch typ {
		case libxcEnd:
			return frames, nil
		case libxcPageData:
			var head struct{ Count, _ uint32 }
			if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
				return nil, err
			}
			if head.Count > (size-8)/8 {
				return nil, fmt.Errorf("%w: a record of %d bytes with %d pages", errNotSaved, size, head.Count)
			}
			pfns := make([]uint64, head.Count)
			if err := binary.Read(r, binary.LittleEndian, pfns); err != nil {
				return nil, err
			}
			for _, p := range pfns {
				if p>>pageTypeShift < firstDataless {
					frames[p&(1<<52-1)] = true
				}
			}
			rest -= 8 + 8*head.Count
		}
		if err := skip(r, rest); err != nil {
			return nil, err
		}
	}
}

func readRecord(r io.Reader) (typ, size uint32, err error) {
	var h struct{ Type, Size uint32 }
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil {
		return 0, 0, err
	}
	if h.Size > maxSavedRecord || h.Type == libxcPageData && h.Size > 0 && h.Size < 8 {
		return 0, 0, fmt.Errorf("%w: a record of type %#x has %d bytes", errNotSaved, h.Type, h.Size)
	}
	return h.Type, h.Size, nil
}

func padded(n uint32) uint32 { return (n + 7) &^ 7 }

func skip(r *bufio.Reader, n uint32) error {
	_, err := r.Discard(int(n))
	return err
}
