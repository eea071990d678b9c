package image

import (
	"errors"
	"fmt"

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
	Finding Phase = "finding the kernel"
	Reading Phase = "reading"
)

// Phases are all phases, in their order.
func Phases() []Phase { return []Phase{Opening, Finding, Reading} }

// Options change how an image is opened. The zero value is the usual way.
type Options struct {
	// Phase is told when a phase begins. It may be nil.
	Phase func(Phase)
}

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
}

// Open opens a memory image and finds its kernel. Errors are of package dump
// ([dump.OpenError], [dump.GoneError]) or a [*KernelError].
func Open(path string, opt Options) (*Image, error) {
	opt.begin(Opening)
	file, err := dump.Open(path)
	if err != nil {
		return nil, err
	}
	im := &Image{opt: opt, file: file}
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
	k, err := linux.Find(im.file, im.regs, im.file.Ranges())
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

// Ask answers a question about the guest in the image. Errors are the
// question's, the reader's, or a [*dump.GoneError].
func (im *Image) Ask(q inspect.Question, a inspect.Args) (out any, err error) {
	im.opt.begin(Reading)
	err = im.file.Guard(func() error {
		var err error
		out, err = q.Ask(inspect.Partial(im.kernel.NewReader(im.regs)), a)
		return err
	})
	return out, err
}
