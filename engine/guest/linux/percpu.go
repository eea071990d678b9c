package linux

import "github.com/xen-hvi/hvi/engine/x86"

// perCPUArea is the memory that a processor has of its own: what is added to a
// per-CPU symbol's value to find its copy of it.
type perCPUArea struct {
	cpu  int
	base x86.VirtAddr
}

// perCPUAreas returns those of the processors that are online, as the kernel's
// own table has them.
func (r *Reader) perCPUAreas() ([]perCPUArea, error) {
	table, err := r.variable("__per_cpu_offset")
	if err != nil {
		return nil, err
	}
	n := uint32(1)
	if at, err := r.variable("nr_cpu_ids"); err == nil { // a constant on one processor
		if n, err = r.as.ReadUint32(at); err != nil {
			return nil, &ReadError{What: "nr_cpu_ids", Err: err}
		}
	}
	online, _ := r.variable("__cpu_online_mask") // since 4.5
	var out []perCPUArea
	for cpu := range min(n, maxCPUs) {
		if online != 0 {
			word, err := r.as.ReadUint64(online + x86.VirtAddr(cpu/64*8))
			if err != nil {
				return nil, &ReadError{What: "__cpu_online_mask", Err: err}
			}
			if word>>(cpu%64)&1 == 0 {
				continue
			}
		}
		base, err := r.as.ReadPointer(table + x86.VirtAddr(cpu)*8)
		if err != nil {
			return nil, &ReadError{What: "__per_cpu_offset", Err: err}
		}
		if base.KernelHalf() {
			out = append(out, perCPUArea{int(cpu), base})
		}
	}
	return out, nil
}
