package linux

import (
	"fmt"
	"strings"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxMounts bounds the mounts of a namespace: fs.mount-max is 100,000.
	maxMounts = 1 << 17
	// maxMountText bounds a file system's name and what a mount is of.
	maxMountText = 4096
	// mntCursor marks an entry of a namespace's list that is no mount but the
	// place of someone who reads it (5.8 to 6.7).
	mntCursor = 0x1000_0000
	mntRO     = 0x40
	sbRO      = 1
)

// mountOptions are flags of vfsmount.mnt_flags in the order and the words of
// /proc/PID/mountinfo (show_mnt_opts of fs/proc_namespace.c), superOptions those
// of super_block.s_flags (show_sb_opts).
var (
	mountOptions = []option{{0x01, "nosuid"}, {0x02, "nodev"}, {0x04, "noexec"}, {0x08, "noatime"}, {0x10, "nodiratime"}, {0x20, "relatime"}, {0x80, "nosymfollow"}}
	superOptions = []option{{1 << 4, "sync"}, {1 << 7, "dirsync"}, {1 << 6, "mand"}, {1 << 25, "lazytime"}}
)

type option struct {
	bit  uint64
	name string
}

// MountListOffsets lays out what struct mnt_namespace has of its mounts.
type MountListOffsets struct {
	// List is their list to 6.7; without it, Tree is their tree. Before, the
	// member of that name was their number.
	List  int `c:"list"`
	Tree  int `c:"mounts"`
	Count int `c:"nr_mounts|mounts"`
}

// FSTypeOffsets lays out struct file_system_type.
type FSTypeOffsets struct {
	Name int `c:"name"`
}

// Mounts reports the mounts that a process sees, as /proc/PID/mountinfo does; 0
// stands for process 1. Without such a process it is [ErrNoProcess]. A process
// that has ended sees none.
func (r *Reader) Mounts(pid int32) (report.List[report.Mount], error) {
	if pid == 0 {
		pid = 1
	}
	out := report.List[report.Mount]{Items: []report.Mount{}}
	err := r.reading(&out.Reading, func() error {
		task, err := r.findTask(pid)
		if err != nil {
			return err
		}
		w := &mountsReader{r: r, paths: r.pathReader(), size: span(r.k.Offsets.Mount)}
		tries := 0
		return r.consistently(fmt.Sprintf("the mounts of process %d", pid), func() error {
			w.items = out.Items[:0]
			tries++
			err := w.all(task, pid, tries >= countTries)
			out.Items = w.items
			return err
		})
	})
	return out, err
}

// mountsReader reads the mounts of one namespace.
type mountsReader struct {
	r     *Reader
	paths *pathReader
	root  path
	mount object
	size  int
	items []report.Mount
	found int // those that are out of sight included
}

// all reads everything, once. settle takes what is there for true though the
// kernel's own count differs.
func (w *mountsReader) all(at x86.VirtAddr, pid int32, settle bool) error {
	r, o := w.r, &w.r.k.Offsets
	if err := need("task_struct.nsproxy", o.Task.NSProxy, "nsproxy.mnt_ns", o.NSProxy.Mount, "mount.mnt", o.Mount.VFS); err != nil {
		return err
	}
	task, err := r.threadOf(at, pid)
	if err != nil {
		return err
	}
	w.found = 0
	proxy := task.pointer(o.Task.NSProxy)
	if proxy == 0 {
		return nil
	}
	ns, err := r.as.ReadPointer(proxy + x86.VirtAddr(o.NSProxy.Mount))
	if err != nil {
		return errTorn
	}
	if w.root, err = w.paths.rootOf(task.pointer(o.Task.FS)); err != nil {
		return errTorn
	}
	before, err := w.paths.sequence()
	if err != nil {
		return err
	}
	switch l := &o.MountList; {
	case l.List >= 0 && o.Mount.List >= 0:
		err = r.list("the mounts of a namespace", ns+x86.VirtAddr(l.List), maxMounts, func(node x86.VirtAddr) error {
			return w.one(node - x86.VirtAddr(o.Mount.List))
		})
	case l.List < 0 && l.Tree >= 0 && o.Mount.Node >= 0:
		err = r.rbTree("the mounts of a namespace", ns+x86.VirtAddr(l.Tree), maxMounts, func(node x86.VirtAddr) error {
			return w.one(node - x86.VirtAddr(o.Mount.Node))
		})
	default:
		err = &ReadError{What: "mnt_namespace", Got: "neither list nor mounts", Err: ErrUnsupported}
	}
	if err != nil {
		return err
	}
	after, err := w.paths.sequence()
	if err != nil {
		return err
	}
	if before[1] != after[1] {
		return errTorn
	}
	count, err := r.as.ReadUint32(ns + x86.VirtAddr(max(o.MountList.Count, 0)))
	if err != nil {
		return errTorn
	}
	if o.MountList.Count >= 0 && int(count) != w.found {
		if !settle {
			return errTorn
		}
		r.missing("the kernel has counted %d mounts, and %d are there", count, w.found)
	}
	return nil
}

// one adds a mount, unless the process can't see it from its root.
func (w *mountsReader) one(at x86.VirtAddr) error {
	r, o := w.r, &w.r.k.Offsets
	if err := r.read(&w.mount, at, w.size); err != nil {
		return errTorn
	}
	flags := w.mount.u32(o.Mount.Flags)
	if flags&mntCursor != 0 {
		return nil
	}
	w.found++
	point, err := w.paths.read(path{at + x86.VirtAddr(o.Mount.VFS), w.mount.pointer(o.Mount.Root)}, w.root)
	if err != nil {
		return err
	}
	if w.root != (path{}) && !w.paths.reached {
		return nil
	}
	m := report.Mount{
		ID:      int(int32(w.mount.u32(o.Mount.ID))),
		Point:   printable.Escape(string(point)),
		Options: options(uint64(flags), mntRO, mountOptions),
	}
	parent, err := r.as.ReadUint32(w.mount.pointer(o.Mount.Parent) + x86.VirtAddr(o.Mount.ID))
	if err != nil {
		return errTorn
	}
	m.Parent = int(int32(parent))
	root, err := w.paths.inside(w.mount.pointer(o.Mount.Root))
	if err != nil {
		return err
	}
	m.Root = printable.Escape(string(root))
	if m.Source, err = w.text(w.mount.pointer(o.Mount.Source), "none"); err != nil {
		return err
	}
	if err := w.fileSystem(&m, w.mount.pointer(o.Mount.Super)); err != nil {
		return err
	}
	w.items = append(w.items, m)
	return nil
}

// fileSystem describes what is mounted.
func (w *mountsReader) fileSystem(m *report.Mount, super x86.VirtAddr) (err error) {
	r, o := w.r, &w.r.k.Offsets
	if m.Device, err = r.device(super); err != nil {
		return errTorn
	}
	if o.SuperBlock.Flags >= 0 {
		flags, err := r.as.ReadUint64(super + x86.VirtAddr(o.SuperBlock.Flags))
		if err != nil {
			return errTorn
		}
		m.SuperOptions = options(flags, sbRO, superOptions)
	}
	if o.SuperBlock.Type < 0 || o.FSType.Name < 0 {
		return nil
	}
	kind, err := r.as.ReadPointer(super + x86.VirtAddr(o.SuperBlock.Type))
	if err != nil {
		return errTorn
	}
	name, err := r.as.ReadPointer(kind + x86.VirtAddr(o.FSType.Name))
	if err != nil {
		return errTorn
	}
	if m.Type, err = w.text(name, ""); err != nil || o.SuperBlock.Subtype < 0 {
		return err
	}
	sub, err := r.as.ReadPointer(super + x86.VirtAddr(o.SuperBlock.Subtype))
	if err != nil {
		return errTorn
	}
	if sub != 0 {
		more, err := w.text(sub, "")
		if err != nil {
			return err
		}
		m.Type += "." + more
	}
	return nil
}

// text is a string of the kernel's, or what stands for none.
func (w *mountsReader) text(at x86.VirtAddr, none report.Text) (report.Text, error) {
	if at == 0 {
		return none, nil
	}
	s, err := w.r.as.ReadCString(at, maxMountText)
	if err != nil {
		return "", errTorn
	}
	return printable.Escape(s), nil
}

func options(flags, ro uint64, names []option) string {
	out := []string{"rw"}
	if flags&ro != 0 {
		out[0] = "ro"
	}
	for _, o := range names {
		if flags&o.bit != 0 {
			out = append(out, o.name)
		}
	}
	return strings.Join(out, ",")
}
