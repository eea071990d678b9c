package linux

import (
	"crypto/sha256"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// maxModuleText bounds the code of one module that is summed, in bytes: the largest of
// Debian's modules, those of graphics drivers, have some 6 MiB.
const maxModuleText = 32 << 20

// LiveModules returns the modules that have been loaded, in the order of the kernel's
// list, without those that come or go just now, and without the names of their users.
// It is for a Reader that belongs to the caller alone.
func (r *Reader) LiveModules() ([]report.Module, error) {
	r.beginLook()
	if _, ok := r.k.Symbols.Lookup("load_module"); !ok {
		return nil, nil // built without CONFIG_MODULES
	}
	var out []report.Module
	err := r.consistently("the list of modules", func() error {
		out = out[:0]
		return r.eachModule(func(mod x86.VirtAddr) error {
			m, _, err := r.copyModule(mod)
			if err == nil && m.State == moduleStates[0] {
				out = append(out, m)
			}
			return err
		})
	})
	return out, err
}

// ModuleTextSum returns the SHA-256 of a module's code as it lies in memory: relocated
// to its address and patched by the kernel, so that it is another one after the next
// time it is loaded. At most maxModuleText bytes are read of it.
func (r *Reader) ModuleTextSum(m report.Module) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	var page [x86.PageSize]byte
	left := uint64(maxModuleText)
	for _, a := range m.Regions {
		if a.Kind != regionText {
			continue
		}
		if a.Size > left {
			return sum, tooMany("the module's code, in bytes,", maxModuleText)
		}
		left -= a.Size
		for off := uint64(0); off < a.Size; off += x86.PageSize {
			part := page[:min(a.Size-off, x86.PageSize)]
			if err := r.as.Read(a.Base+x86.VirtAddr(off), part); err != nil {
				return sum, err
			}
			h.Write(part)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
