package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/xi2/xz"
)

// ErrFormat reports input that is not what the function takes.
var ErrFormat = errors.New("not a kernel image of the expected format")

// Offsets into a bzImage's setup header, Documentation/arch/x86/boot.rst.
const (
	setupSects    = 0x1f1 // byte: setup size in sectors, without the first
	headerMagic   = 0x202 // "HdrS"
	versionOffset = 0x20e // uint16: address of the version string, less 0x200
	payloadOffset = 0x248 // uint32: from the protected-mode code's start
	payloadLength = 0x24c // uint32
	headerEnd     = 0x250
)

// maxKernel bounds what unpacking may produce; Debian's largest have 80 MB.
const maxKernel = 512 << 20

// Unpack returns the ELF inside a bzImage.
func Unpack(bz []byte) ([]byte, error) {
	if err := checkHeader(bz); err != nil {
		return nil, err
	}
	sects := int(bz[setupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects + 1) * 512
	off := uint64(start) + uint64(binary.LittleEndian.Uint32(bz[payloadOffset:]))
	end := off + uint64(binary.LittleEndian.Uint32(bz[payloadLength:]))
	if end > uint64(len(bz)) || off >= end {
		return nil, fmt.Errorf("%w: payload at %#x to %#x of %#x bytes", ErrFormat, off, end, len(bz))
	}
	payload := bz[off:end]
	// Behind the stream, the build appends the unpacked size, which must not be
	// taken for another stream.
	var r io.Reader
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		// The build uses xz's x86 filter, which few Go decoders know.
		x, err := xz.NewReader(bytes.NewReader(payload), 0)
		if err != nil {
			return nil, fmt.Errorf("kernel payload: %w", err)
		}
		x.Multistream(false)
		r = x
	case bytes.HasPrefix(payload, []byte("\x02\x21\x4c\x18")):
		r = lz4.NewReader(bytes.NewReader(payload[:len(payload)-4]))
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("kernel payload: %w", err)
		}
		z.Multistream(false)
		r = z
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(bytes.NewReader(payload[:len(payload)-4]), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("kernel payload: %w", err)
		}
		defer z.Close()
		r = z
	default:
		return nil, fmt.Errorf("%w: payload packed in an unknown way, it begins with % x", ErrFormat, payload[:min(4, len(payload))])
	}
	out, err := io.ReadAll(io.LimitReader(r, maxKernel))
	if err != nil {
		return nil, fmt.Errorf("kernel payload: %w", err)
	}
	if !bytes.HasPrefix(out, []byte("\x7fELF")) {
		return nil, fmt.Errorf("%w: the payload is no ELF", ErrFormat)
	}
	return out, nil
}

// Release returns the version string of a bzImage up to its first blank, which
// is what uname -r will say.
func Release(bz []byte) (string, error) {
	if err := checkHeader(bz); err != nil {
		return "", err
	}
	at := int(binary.LittleEndian.Uint16(bz[versionOffset:])) + 0x200
	if at >= len(bz) {
		return "", fmt.Errorf("%w: version string at %#x", ErrFormat, at)
	}
	text := bz[at:min(len(bz), at+256)]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	release, _, _ := strings.Cut(string(text), " ")
	if release == "" {
		return "", fmt.Errorf("%w: empty version string", ErrFormat)
	}
	return release, nil
}

func checkHeader(bz []byte) error {
	if len(bz) < headerEnd || string(bz[headerMagic:headerMagic+4]) != "HdrS" {
		return fmt.Errorf("%w: no boot header", ErrFormat)
	}
	return nil
}
