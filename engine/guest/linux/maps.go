package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// maxMappings bounds the mappings of one process. The kernel's own bound
// (vm.max_map_count) is 65,530 unless an admin has raised it.
const maxMappings = 1 << 18

// countTries is how often mappings, or mounts, are read again because there are
// not as many as the kernel has counted. The number is moved before or after
// them; where it never fits it is said so.
const countTries = 8

// Flags of vm_area_struct.vm_flags (include/linux/mm.h). A mapping that may be
// shared is shown as shared, whether or not it can be written now.
const (
	vmRead     = 0x01
	vmWrite    = 0x02
	vmExec     = 0x04
	vmMayShare = 0x80
)

// vsyscallNone is the value of vsyscall_mode with which a process has no
// vsyscall page (arch/x86/entry/vsyscall/vsyscall_64.c, since 5.3).
const vsyscallNone = 2

// VMAOffsets lays out struct vm_area_struct.
type VMAOffsets struct {
	Size     int
	Start    int `c:"vm_start"`
	End      int `c:"vm_end"`
	MM       int `c:"vm_mm"`
	Flags    int `c:"vm_flags"`
	PageOff  int `c:"vm_pgoff"`
	File     int `c:"vm_file"`
	Ops      int `c:"vm_ops"`
	Private  int `c:"vm_private_data"`
	AnonName int `c:"anon_name"`
	// Shared is there before 6.2 in the same place as AnonName, for mappings
	// of files.
	Shared int `c:"shared"`
	// Next and Prev link the mappings of a process to 6.0.
	Next int `c:"vm_next"`
	Prev int `c:"vm_prev"`
}

// VMOpsOffsets lays out struct vm_operations_struct.
type VMOpsOffsets struct {
	Name int `c:"name"`
}

// AnonNameOffsets lays out struct anon_vma_name.
type AnonNameOffsets struct {
	Name int `c:"name"`
}

// SpecialMappingOffsets lays out struct vm_special_mapping.
type SpecialMappingOffsets struct {
	Name int `c:"name"`
}

// Maps reports the memory of a process as /proc/PID/maps does, in the order of
// addresses. Any thread's number will do. Without such a process it is
// [ErrNoProcess]; a kernel thread, and a process that has ended, has none.
func (r *Reader) Maps(pid int32) (report.List[report.Mapping], error) {
	out := report.List[report.Mapping]{Items: []report.Mapping{}}
	err := r.reading(&out.Reading, func() error {
		task, err := r.findTask(pid)
		if err != nil {
			return err
		}
		w := &mapsReader{r: r, paths: r.pathReader(), task: task, vmaSize: span(r.k.Offsets.VMA)}
		tries := 0
		return r.consistently(fmt.Sprintf("the memory of process %d", pid), func() error {
			w.items = out.Items[:0]
			tries++
			err := w.all(pid, tries >= countTries)
			out.Items = w.items
			return err
		})
	})
	return out, err
}

// mapsReader reads the mappings of one process.
type mapsReader struct {
	r       *Reader
	paths   *pathReader
	task    x86.VirtAddr
	vma     object
	vmaSize int
	items   []report.Mapping

	mm                   x86.VirtAddr
	root                 path
	startBrk, brk, stack x86.VirtAddr
	file                 x86.VirtAddr // whose path and numbers follow
	fileText, fileDevice string
	fileInode            uint64
	unnamed              int
	whyUnnamed           error
}

// all reads everything, once. settle takes what is there for true though the
// kernel's own count differs.
func (w *mapsReader) all(pid int32, settle bool) error {
	r, o := w.r, &w.r.k.Offsets
	if err := need("vm_area_struct.vm_start", o.VMA.Start, "vm_area_struct.vm_end", o.VMA.End, "vm_area_struct.vm_flags", o.VMA.Flags); err != nil {
		return err
	}
	task, err := r.threadOf(w.task, pid)
	if err != nil {
		return err
	}
	w.mm, w.file, w.unnamed = task.pointer(o.Task.MM), 0, 0
	if w.mm == 0 || task.u32(o.Task.Flags)&pfKThread != 0 {
		return nil
	}
	var mm object
	if err := r.read(&mm, w.mm, span(o.MM)); err != nil {
		return errTorn
	}
	w.startBrk, w.brk, w.stack = mm.pointer(o.MM.StartBrk), mm.pointer(o.MM.Brk), mm.pointer(o.MM.StartStack)
	if w.root, err = w.paths.rootOf(task.pointer(o.Task.FS)); err != nil {
		return errTorn
	}
	switch {
	case o.MM.Maple >= 0:
		err = r.maple("mm_struct.mm_mt", w.mm+x86.VirtAddr(o.MM.Maple), maxMappings, func(first, last uint64, entry x86.VirtAddr) error {
			if !entry.KernelHalf() {
				return nil // a reservation
			}
			return w.mapping(entry, first, last)
		})
	case o.MM.First >= 0:
		err = w.list(mm.pointer(o.MM.First))
	default:
		err = &ReadError{What: "mm_struct", Got: "neither mm_mt nor mmap", Err: ErrUnsupported}
	}
	if err != nil {
		return err
	}
	count, err := r.as.ReadUint32(w.mm + x86.VirtAddr(max(o.MM.Count, 0)))
	now, err2 := r.as.ReadPointer(w.task + x86.VirtAddr(o.Task.MM))
	if err := errors.Join(err, err2); err != nil || now != w.mm {
		return errTorn
	}
	if o.MM.Count >= 0 && int(count) != len(w.items) {
		if !settle {
			return errTorn
		}
		r.missing("the kernel has counted %d mappings, and %d are there", count, len(w.items))
	}
	if w.unnamed > 0 {
		r.missing("names of %d mappings: %v", w.unnamed, w.whyUnnamed)
	}
	w.vsyscall()
	return nil
}

// threadOf copies a task and makes sure that it still has its number.
func (r *Reader) threadOf(task x86.VirtAddr, pid int32) (*object, error) {
	o := new(object)
	if err := r.read(o, task, span(r.k.Offsets.Task)); err != nil {
		return nil, err
	}
	if int32(o.u32(r.k.Offsets.Task.PID)) != pid {
		return nil, noProcess(pid)
	}
	return o, nil
}

// list walks the mappings of a kernel to 6.0.
func (w *mapsReader) list(vma x86.VirtAddr) error {
	o := &w.r.k.Offsets.VMA
	if err := need("vm_area_struct.vm_next", o.Next, "vm_area_struct.vm_prev", o.Prev); err != nil {
		return err
	}
	prev := x86.VirtAddr(0)
	for n := 0; vma != 0; n++ {
		if n >= maxMappings {
			return tooMany("the mappings of a process", maxMappings)
		}
		if err := w.mapping(vma, 0, 0); err != nil {
			return err
		}
		if w.vma.pointer(o.Prev) != prev {
			return errTorn
		}
		prev, vma = vma, w.vma.pointer(o.Next)
	}
	return nil
}

// mapping adds one. Where the tree says which addresses it is for, it must say
// so itself.
func (w *mapsReader) mapping(vma x86.VirtAddr, first, last uint64) error {
	r, o := w.r, &w.r.k.Offsets.VMA
	if err := r.read(&w.vma, vma, w.vmaSize); err != nil {
		return errTorn
	}
	v := &w.vma
	m := report.Mapping{Start: v.pointer(o.Start), End: v.pointer(o.End), Perm: permissions(v.u64(o.Flags))}
	if m.Start >= m.End || o.MM >= 0 && v.pointer(o.MM) != w.mm {
		return errTorn
	}
	if last != 0 && (uint64(m.Start) != first || uint64(m.End)-1 != last) {
		return errTorn
	}
	if n := len(w.items); n > 0 && w.items[n-1].End > m.Start {
		return errTorn
	}
	if file := v.pointer(o.File); file != 0 {
		if err := w.ofFile(&m, file); err != nil {
			return err
		}
	} else {
		name, err := w.anonymous(&m)
		if err != nil {
			return err
		}
		m.Path = printable.Escape(name)
	}
	w.items = append(w.items, m)
	return nil
}

func permissions(flags uint64) string {
	b := []byte("---p")
	for i, c := range []struct {
		bit uint64
		as  byte
	}{{vmRead, 'r'}, {vmWrite, 'w'}, {vmExec, 'x'}, {vmMayShare, 's'}} {
		if flags&c.bit != 0 {
			b[i] = c.as
		}
	}
	return string(b)
}

// ofFile describes a mapping of a file. Neighbours are often of the same.
func (w *mapsReader) ofFile(m *report.Mapping, file x86.VirtAddr) error {
	r, o := w.r, &w.r.k.Offsets
	m.Offset = w.vma.u64(o.VMA.PageOff) << x86.PageShift
	if file != w.file {
		at, err := w.paths.fileAt(file)
		if err != nil {
			return errTorn
		}
		w.fileDevice, w.fileInode, err = r.inodeOf(at, w.paths.file.pointer(o.File.Inode))
		if err != nil {
			return errTorn
		}
		text, err := w.paths.read(at, w.root)
		if errors.Is(err, errTorn) {
			return err
		}
		if err != nil {
			w.unnamed, w.whyUnnamed, text = w.unnamed+1, err, nil
		}
		w.file, w.fileText = file, string(text)
	}
	m.Device, m.Inode, m.Path = w.fileDevice, w.fileInode, printable.Escape(w.fileText)
	// A shared anonymous mapping may have been given a name.
	if o.VMA.AnonName >= 0 && o.VMA.AnonName != o.VMA.Shared {
		if name, err := w.anonName(); err != nil {
			return err
		} else if name != "" {
			m.Path = printable.Escape("[anon_shmem:" + name + "]")
		}
	}
	return nil
}

// inodeOf returns the device and number of a file's inode: that of its path if
// that is another than the open one's, as it is on an overlay.
func (r *Reader) inodeOf(at path, inode x86.VirtAddr) (device string, number uint64, err error) {
	o := &r.k.Offsets
	if own, err := r.as.ReadPointer(at.dentry + x86.VirtAddr(max(o.Dentry.Inode, 0))); err == nil && own != 0 && o.Dentry.Inode >= 0 {
		inode = own
	}
	if o.Inode.Number < 0 || o.Inode.SuperBlock < 0 {
		return "", 0, nil
	}
	if number, err = r.as.ReadUint64(inode + x86.VirtAddr(o.Inode.Number)); err != nil {
		return "", 0, err
	}
	super, err := r.as.ReadPointer(inode + x86.VirtAddr(o.Inode.SuperBlock))
	if err != nil {
		return "", 0, err
	}
	device, err = r.device(super)
	return device, number, err
}

// device is the device number of a file system. Inside the kernel a dev_t has
// 12 bits for the major number and 20 for the minor one.
func (r *Reader) device(super x86.VirtAddr) (string, error) {
	if r.k.Offsets.SuperBlock.Device < 0 {
		return "", nil
	}
	dev, err := r.as.ReadUint32(super + x86.VirtAddr(r.k.Offsets.SuperBlock.Device))
	return fmt.Sprintf("%d:%d", dev>>20, dev&(1<<20-1)), err
}

// anonymous is the name of a mapping of no file, as show_map_vma of
// fs/proc/task_mmu.c finds it.
func (w *mapsReader) anonymous(m *report.Mapping) (string, error) {
	name, err := w.special()
	if name != "" || err != nil {
		return name, err
	}
	switch {
	case m.Start < w.brk && m.End > w.startBrk:
		return "[heap]", nil
	case m.Start <= w.stack && m.End >= w.stack:
		return "[stack]", nil
	}
	if name, err = w.anonName(); name != "" {
		name = "[anon:" + name + "]"
	}
	return name, err
}

// special is the name of a mapping that the kernel itself made: [vdso], [vvar],
// [uprobes].
func (w *mapsReader) special() (string, error) {
	r, o := w.r, &w.r.k.Offsets
	ops := w.vma.pointer(o.VMA.Ops)
	if ops == 0 || o.VMOps.Name < 0 || o.SpecialMapping.Name < 0 {
		return "", nil
	}
	f, err := r.as.ReadPointer(ops + x86.VirtAddr(o.VMOps.Name))
	if err != nil {
		return "", errTorn
	}
	if name, _, _ := r.k.Symbols.Symbolize(f); name != "special_mapping_name" {
		return "", nil
	}
	at, err := r.as.ReadPointer(w.vma.pointer(o.VMA.Private) + x86.VirtAddr(o.SpecialMapping.Name))
	if err != nil {
		return "", errTorn
	}
	name, err := r.as.ReadCString(at, maxName)
	if err != nil {
		return "", errTorn
	}
	return name, nil
}

// anonName is the name that a process gave to a mapping by
// prctl(PR_SET_VMA_ANON_NAME), which has 80 bytes at most.
func (w *mapsReader) anonName() (string, error) {
	o := &w.r.k.Offsets
	if o.VMA.AnonName < 0 || o.AnonName.Name < 0 {
		return "", nil
	}
	at := w.vma.pointer(o.VMA.AnonName)
	if at == 0 {
		return "", nil
	}
	name, err := w.r.as.ReadCString(at+x86.VirtAddr(o.AnonName.Name), 80)
	if err != nil {
		return "", errTorn
	}
	return name, nil
}

// vsyscall adds the page that is no mapping of the process but there for each:
// gate_vma.
func (w *mapsReader) vsyscall() {
	r, o := w.r, &w.r.k.Offsets.VMA
	gate, err := r.variable("gate_vma")
	if err != nil {
		return
	}
	mode, err := r.variable("vsyscall_mode")
	if err != nil {
		return
	}
	if m, err := r.as.ReadUint32(mode); err != nil || m == vsyscallNone || r.read(&w.vma, gate, w.vmaSize) != nil {
		return
	}
	start := w.vma.pointer(o.Start)
	w.items = append(w.items, report.Mapping{
		Start: start, End: w.vma.pointer(o.End), Perm: permissions(w.vma.u64(o.Flags)), Path: "[vsyscall]",
	})
}
