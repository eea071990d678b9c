package image

import (
	"errors"
	"fmt"
	"io"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/dump"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Phase is a step of looking into an image, in the words in which people are
// told of it.
type Phase string

// The phases, in their order.
const (
	Opening Phase = "opening the file"
	Types   Phase = "reading the profile" // if one was given
	Finding Phase = "finding the kernel"
	Reading Phase = "reading"
)

// Phases are all phases, in their order.
func Phases() []Phase { return []Phase{Opening, Types, Finding, Reading} }

// Options change how an image is opened. The zero value is the usual way.
type Options struct {
	// Phase is told when a phase begins. It may be nil.
	Phase func(Phase)
	// Format is one of Formats; "" tells it by the content.
	Format string
	// Profile is a file with the kernel's types in the format of Volatility 3, in
	// place of what the kernel says itself; "" is none.
	Profile string
}

// formats are the formats that can be asked for.
var formats = map[string]dump.Format{"": "", "raw": dump.Raw, "lime": dump.LiME, "elf": dump.ELFCore, "xen": dump.XenCore}

// Formats are the words for formats.
func Formats() []string { return []string{"raw", "lime", "elf", "xen"} }

func (o Options) begin(p Phase) {
	if o.Phase != nil {
		o.Phase(p)
	}
}

// ErrNoKernel: there is no Linux kernel that can be read in the image.
var ErrNoKernel = errors.New("no Linux kernel is found")

// KernelError says why there is no kernel to read. It matches [ErrNoKernel] and
// what it wraps.
type KernelError struct {
	Path   string
	Format dump.Format
	Err    error
}

func (e *KernelError) Error() string {
	return fmt.Sprintf("%v in %s (%s): %v", ErrNoKernel, e.Path, e.Format, e.Err)
}

// Unwrap returns ErrNoKernel and the cause.
func (e *KernelError) Unwrap() []error { return []error{ErrNoKernel, e.Err} }

// Image is a memory image with a kernel in it.
type Image struct {
	opt    Options
	file   *dump.Image
	kernel *linux.Kernel
	regs   []x86.Registers
	more   linux.Options
}

// Open opens a memory image and finds its kernel. Errors are of package dump
// ([dump.OpenError], [dump.GoneError]), a [*KernelError], or a [*linux.ISFError].
func Open(path string, opt Options) (*Image, error) {
	as, ok := formats[opt.Format]
	if !ok {
		return nil, fmt.Errorf("no format of memory images is called %q", opt.Format)
	}
	opt.begin(Opening)
	file, err := dump.OpenAs(path, as)
	if err != nil {
		return nil, err
	}
	im := &Image{opt: opt, file: file}
	if opt.Profile != "" {
		opt.begin(Types)
		if im.more.ISF, err = linux.OpenISF(opt.Profile); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	opt.begin(Finding)
	if err := file.Guard(im.find); err != nil {
		_ = file.Close()
		return nil, err
	}
	return im, nil
}

// find sets the registers and the kernel.
func (im *Image) find() error {
	for i := range im.file.VCPUs() {
		r, err := im.file.Registers(i)
		if err != nil {
			return err
		}
		im.regs = append(im.regs, r)
	}
	k, err := linux.FindWith(im.file, im.regs, im.file.Ranges(), im.more)
	if err != nil {
		return &KernelError{im.file.Path(), im.file.Format(), err}
	}
	im.kernel = k
	return nil
}

// Close closes the file.
func (im *Image) Close() error { return im.file.Close() }

// Format is how the file holds memory.
func (im *Image) Format() dump.Format { return im.file.Format() }

// Memory is the guest's.
func (im *Image) Memory() guest.Memory { return im.file }

// ExportISF writes the kernel's symbols and types as a profile in the format of
// Volatility 3. Errors are those of [linux.ExportISF], or a [*dump.GoneError].
func (im *Image) ExportISF(w io.Writer) error {
	im.opt.begin(Reading)
	return im.file.Guard(func() error { return linux.ExportISF(w, im.kernel) })
}

// Ask answers a question about the guest in the image. Errors are the
// question's, the reader's, or a [*dump.GoneError].
func (im *Image) Ask(q inspect.Question, a inspect.Args) (out any, err error) {
	im.opt.begin(Reading)
	err = im.file.Guard(func() error {
		var err error
		out, err = q.Ask(im.kernel.NewReader(im.regs), a)
		return err
	})
	return out, err
}
