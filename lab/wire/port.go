package wire

import (
	"fmt"
	"io"
	"os"
)

// PortE9 is the I/O port whose writes both emulators copy to the host: Bochs
// calls it port_e9_hack, QEMU isa-debugcon at its default address.
const PortE9 = 0xe9

// Port is an [io.WriteCloser] that writes each byte to one I/O port.
type Port struct {
	f    *os.File
	port int64
}

var _ io.WriteCloser = (*Port)(nil)

// OpenPort opens an I/O port through /dev/port, which needs root.
func OpenPort(port uint16) (*Port, error) {
	f, err := os.OpenFile("/dev/port", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return &Port{f: f, port: int64(port)}, nil
}

// Write writes p, one byte at a time: /dev/port would spread a longer write
// over neighbouring ports.
func (p *Port) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := p.f.WriteAt(b[i:i+1], p.port); err != nil {
			return i, fmt.Errorf("port %#x: %w", p.port, err)
		}
	}
	return len(b), nil
}

// Close closes the port.
func (p *Port) Close() error { return p.f.Close() }
