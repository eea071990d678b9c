package linux

import "github.com/xen-hvi/hvi/engine/x86"

// MappedFrame is a frame of the guest's memory and where the kernel maps it.
type MappedFrame struct {
	GFN x86.GFN
	VA  x86.VirtAddr
}

// maxSealedFrames bounds the frames of all modules together: 1 GiB.
const maxSealedFrames = 1 << 18

// SealedModuleFrames returns the frames of the code and the read-only data of all
// modules that are live, which the kernel has made read-only, in the order of the
// kernel's list. It is for a Reader that belongs to the caller alone.
func (r *Reader) SealedModuleFrames() ([]MappedFrame, error) {
	r.beginLook()
	if _, ok := r.k.Symbols.Lookup("load_module"); !ok {
		return nil, nil // built without CONFIG_MODULES
	}
	var out []MappedFrame
	err := r.consistently("the modules' memory", func() error {
		out = out[:0]
		return r.eachModule(func(mod x86.VirtAddr) error {
			m, _, err := r.copyModule(mod)
			if err != nil {
				return err
			}
			if m.State != moduleStates[0] {
				return nil // still being loaded, or already on its way out
			}
			for _, a := range m.Regions {
				switch a.Kind {
				case regionText, regionROData, regionROAfterInit:
				default:
					continue
				}
				for va := a.Base.Page(); va < a.Base+x86.VirtAddr(a.Size); va += x86.PageSize {
					t, err := r.as.Translate(va)
					if err != nil {
						return errTorn
					}
					// What is writable is not sealed: a module that is just
					// being made read-only, or shares its last page with data.
					if t.Writable {
						continue
					}
					if len(out) == maxSealedFrames {
						return tooMany("the modules' memory", maxSealedFrames)
					}
					out = append(out, MappedFrame{t.Phys.GFN(), va})
				}
			}
			return nil
		})
	})
	return out, err
}
