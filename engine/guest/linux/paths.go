package linux

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Bounds of a path.
const (
	// maxPath is PATH_MAX: the kernel itself prints no longer one.
	maxPath = 4096
	// maxName is the longest name of a directory's entry that is believed.
	// NAME_MAX is 255; that of an anonymous file may have a prefix besides.
	maxName = 512
	// maxPathSteps bounds the names and mounts that one path leads through:
	// each name is a byte of it at least, and mounts can be stacked.
	maxPathSteps = 2 * maxPath
	// maxPathRetries bounds how often a path is read again because something
	// was renamed or mounted meanwhile.
	maxPathRetries = 16
)

// FileOffsets lays out struct file.
type FileOffsets struct {
	Size   int
	Mount  int `c:"f_path.mnt"`
	Dentry int `c:"f_path.dentry"`
	Inode  int `c:"f_inode"`
	Mode   int `c:"f_mode"`
}

// BackingOffsets lays out struct backing_file, a file of a layer below an
// overlay that is opened in place of the overlay's (6.5). Path is the path that
// its user sees, where f_path is that of the layer (6.8).
type BackingOffsets struct {
	Path int `c:"user_path"`
}

// FMODE_BACKING (include/linux/fs.h): a bit of file.f_mode that has moved in
// 6.14, the release with which dentry.d_iname became d_shortname.
const (
	fmodeBackingOld = 1 << 25
	fmodeBacking    = 1 << 24
)

// FSOffsets lays out struct fs_struct.
type FSOffsets struct {
	RootMount  int `c:"root.mnt"`
	RootDentry int `c:"root.dentry"`
}

// PathOffsets lays out struct path.
type PathOffsets struct {
	Mount  int `c:"mnt"`
	Dentry int `c:"dentry"`
}

// MountOffsets lays out struct mount, which holds a struct vfsmount: other
// structures point to that.
type MountOffsets struct {
	Size   int
	VFS    int `c:"mnt"`
	Root   int `c:"mnt.mnt_root"`
	Super  int `c:"mnt.mnt_sb"`
	Flags  int `c:"mnt.mnt_flags"`
	Parent int `c:"mnt_parent"`
	Point  int `c:"mnt_mountpoint"`
	Source int `c:"mnt_devname"`
	ID     int `c:"mnt_id"`
	// List links the mounts of a namespace to 6.7, Node from 6.8 on.
	List int `c:"mnt_list"`
	Node int `c:"mnt_node"`
}

// DentryOffsets lays out struct dentry.
type DentryOffsets struct {
	Size    int
	Hashed  int `c:"d_hash.pprev"`
	Parent  int `c:"d_parent"`
	NameLen int `c:"d_name.len"`
	Name    int `c:"d_name.name"`
	Inode   int `c:"d_inode"`
	Ops     int `c:"d_op"`
	FSData  int `c:"d_fsdata"`
	// ShortName is a name in the dentry itself, called so from 6.14 on.
	ShortName int `c:"d_shortname"`
}

// DentryOpsOffsets lays out struct dentry_operations.
type DentryOpsOffsets struct {
	Name int `c:"d_dname"`
}

// InodeOffsets lays out struct inode.
type InodeOffsets struct {
	Number     int `c:"i_ino"`
	SuperBlock int `c:"i_sb"`
}

// path is a struct path: a place in a tree of mounts.
type path struct{ mount, dentry x86.VirtAddr }

// pathReader reads paths. Its memory serves many.
type pathReader struct {
	r      *Reader
	dentry object
	mount  object
	file   object
	name   object
	// text is filled from its end; at is where the path begins.
	text [maxPath]byte
	at   int
	// reached says that the path led to the root that was given.
	reached bool

	dentrySize, mountSize, fileSize int
	// Where the sequence numbers of renames and of mounts are, 0 in a kernel
	// without these symbols.
	sequences [2]x86.VirtAddr
}

func (r *Reader) pathReader() *pathReader {
	o := &r.k.Offsets
	p := &pathReader{r: r, dentrySize: span(o.Dentry), mountSize: span(o.Mount), fileSize: span(o.File)}
	for i, name := range [...]string{"rename_lock", "mount_lock"} {
		p.sequences[i], _ = r.variable(name)
	}
	return p
}

// read returns a path as a process whose root directory is given sees it, as
// the kernel's d_path prints it: with " (deleted)" where the name is gone. A
// path that does not lead to the root is what there is of it. The bytes are the
// guest's, and valid until the next call.
//
// The kernel lets paths be read without locks: every rename and every change of
// mounts moves a sequence number (rename_lock, mount_lock), and who has read one
// in the middle of it reads again.
func (p *pathReader) read(at, root path) ([]byte, error) {
	o := &p.r.k.Offsets
	if err := need("dentry.d_parent", o.Dentry.Parent, "dentry.d_name", o.Dentry.Name, "dentry.d_name.len", o.Dentry.NameLen,
		"mount.mnt", o.Mount.VFS, "mount.mnt_root", o.Mount.Root, "mount.mnt_parent", o.Mount.Parent, "mount.mnt_mountpoint", o.Mount.Point); err != nil {
		return nil, err
	}
	for n := range maxPathRetries {
		before, err := p.sequence()
		if err != nil {
			return nil, err
		}
		err = p.once(at, root)
		after, err2 := p.sequence()
		if err2 != nil {
			return nil, err2
		}
		if before == after && (before[0]|before[1])&1 == 0 && err == nil {
			return p.text[p.at:], nil
		}
		if before == after && err != nil && !errors.Is(err, errTorn) {
			return nil, err
		}
		p.r.again(n + 1)
	}
	return nil, errTorn
}

// sequence reads the sequence numbers.
func (p *pathReader) sequence() (seq [2]uint32, err error) {
	for i, va := range p.sequences {
		if va == 0 {
			continue
		}
		// A seqlock_t begins with its seqcount, and that with the number.
		if seq[i], err = p.r.as.ReadUint32(va); err != nil {
			return seq, &ReadError{What: "rename_lock, mount_lock", Err: err}
		}
	}
	return seq, nil
}

// once reads a path into text.
func (p *pathReader) once(at, root path) error {
	o := &p.r.k.Offsets
	p.at, p.reached = len(p.text), false
	for step := 0; ; step++ {
		if p.reached = at == root; p.reached {
			break
		}
		if step > maxPathSteps {
			return &ReadError{What: "a path", Got: fmt.Sprintf("more than %d steps", maxPathSteps), Err: ErrImplausible}
		}
		if err := p.r.read(&p.dentry, at.dentry, p.dentrySize); err != nil {
			return err
		}
		parent := p.dentry.pointer(o.Dentry.Parent)
		if err := p.r.read(&p.mount, at.mount-x86.VirtAddr(o.Mount.VFS), p.mountSize); err != nil {
			return err
		}
		top := p.mount.pointer(o.Mount.Root)
		if step == 0 && (at.dentry != top || parent != at.dentry) {
			if done, err := p.special(); done || err != nil {
				return err
			}
		}
		if at.dentry != top && parent != at.dentry {
			if step == 0 && o.Dentry.Hashed >= 0 && p.dentry.u64(o.Dentry.Hashed) == 0 {
				if err := p.prepend([]byte(" (deleted)")); err != nil {
					return err
				}
			}
			if err := p.prependName(); err != nil {
				return err
			}
			at.dentry = parent
			continue
		}
		up := p.mount.pointer(o.Mount.Parent)
		if at.dentry != top || up == p.mount.at {
			break // outside of what this mount shows, or at the top of all
		}
		at = path{up + x86.VirtAddr(o.Mount.VFS), p.mount.pointer(o.Mount.Point)}
	}
	if p.at == len(p.text) {
		return p.prepend([]byte{'/'})
	}
	return nil
}

// inside returns the path of a dentry in its own file system, as it is shown
// of the root of a mount. The bytes are valid until the next call.
func (p *pathReader) inside(dentry x86.VirtAddr) ([]byte, error) {
	o := &p.r.k.Offsets
	p.at = len(p.text)
	for step := range maxPathSteps {
		if err := p.r.read(&p.dentry, dentry, p.dentrySize); err != nil {
			return nil, errTorn
		}
		parent := p.dentry.pointer(o.Dentry.Parent)
		if parent == dentry {
			if step == 0 { // a namespace's file is mounted by itself
				if done, err := p.special(); done || err != nil {
					return p.text[p.at:], err
				}
			}
			if p.at == len(p.text) {
				return []byte{'/'}, nil
			}
			return p.text[p.at:], nil
		}
		if step == 0 && o.Dentry.Hashed >= 0 && p.dentry.u64(o.Dentry.Hashed) == 0 {
			if err := p.prepend([]byte("//deleted")); err != nil {
				return nil, err
			}
		}
		if err := p.prependName(); err != nil {
			return nil, err
		}
		dentry = parent
	}
	return nil, tooMany("a path", maxPathSteps)
}

func (p *pathReader) prepend(b []byte) error {
	if len(b) > p.at {
		return &ReadError{What: "a path", Got: fmt.Sprintf("more than %d bytes", maxPath), Err: ErrImplausible}
	}
	p.at -= len(b)
	copy(p.text[p.at:], b)
	return nil
}

// readName copies the name of the dentry that was read last.
func (p *pathReader) readName() error {
	o := &p.r.k.Offsets.Dentry
	n := p.dentry.u32(o.NameLen)
	if n == 0 || n > maxName {
		return errTorn
	}
	return p.r.read(&p.name, p.dentry.pointer(o.Name), int(n))
}

func (p *pathReader) prependName() error {
	if err := p.readName(); err != nil {
		return err
	}
	// A name that is being changed: the sequence number will tell.
	if slices.ContainsFunc(p.name.b, func(c byte) bool { return c == 0 || c == '/' }) {
		return errTorn
	}
	if err := p.prepend(p.name.b); err != nil {
		return err
	}
	return p.prepend([]byte{'/'})
}

// special writes the name of a file that is in no directory, as its function
// d_dname does. It reports whether that is all of the path.
func (p *pathReader) special() (bool, error) {
	o := &p.r.k.Offsets
	ops := p.dentry.pointer(o.Dentry.Ops)
	if ops == 0 || o.DentryOps.Name < 0 {
		return false, nil
	}
	f, err := p.r.as.ReadPointer(ops + x86.VirtAddr(o.DentryOps.Name))
	if err != nil || f == 0 {
		return false, err
	}
	name, _, _ := p.r.k.Symbols.Symbolize(f)
	kind := ""
	switch name {
	case "pipefs_dname":
		kind = "pipe"
	case "sockfs_dname":
		kind = "socket"
	case "ns_dname": // net:[4026531840]: the kind is in the operations
		return true, p.namespaceName()
	case "anon_inodefs_dname":
		if err := p.readName(); err != nil {
			return true, err
		}
		return true, p.prepend(append([]byte("anon_inode:"), p.name.b...))
	default: // simple_dname, and those of modules, which are like it
		if err := p.readName(); err != nil {
			return true, err
		}
		return true, p.prepend(slices.Concat([]byte{'/'}, p.name.b, []byte(" (deleted)")))
	}
	ino, err := p.inodeNumber()
	if err != nil {
		return true, err
	}
	return true, p.prepend([]byte(kind + ":[" + strconv.FormatUint(ino, 10) + "]"))
}

func (p *pathReader) inodeNumber() (uint64, error) {
	o := &p.r.k.Offsets
	if err := need("inode.i_ino", o.Inode.Number); err != nil {
		return 0, err
	}
	return p.r.as.ReadUint64(p.dentry.pointer(o.Dentry.Inode) + x86.VirtAddr(o.Inode.Number))
}

// namespaceName is the text of a link in /proc/PID/ns. proc_ns_operations, which
// d_fsdata points to, begins with its name.
func (p *pathReader) namespaceName() error {
	ino, err := p.inodeNumber()
	if err != nil {
		return err
	}
	kind := "ns"
	if ops := p.dentry.pointer(p.r.k.Offsets.Dentry.FSData); ops.KernelHalf() {
		if name, err := p.r.as.ReadPointer(ops); err == nil && name.KernelHalf() {
			if s, err := p.r.as.ReadCString(name, 16); err == nil {
				kind = s
			}
		}
	}
	return p.prepend([]byte(kind + ":[" + strconv.FormatUint(ino, 10) + "]"))
}

// fileAt reads a struct file: the path by which its user knows it.
func (p *pathReader) fileAt(file x86.VirtAddr) (path, error) {
	o := &p.r.k.Offsets
	if err := need("file.f_path.mnt", o.File.Mount, "file.f_path.dentry", o.File.Dentry); err != nil {
		return path{}, err
	}
	if err := p.r.read(&p.file, file, p.fileSize); err != nil {
		return path{}, err
	}
	at := path{p.file.pointer(o.File.Mount), p.file.pointer(o.File.Dentry)}
	backing := uint32(fmodeBackingOld)
	if o.Dentry.ShortName >= 0 {
		backing = fmodeBacking
	}
	if o.Backing.Path < 0 || p.file.u32(o.File.Mode)&backing == 0 {
		return at, nil
	}
	user := file + x86.VirtAddr(o.Backing.Path)
	var err error
	if at.mount, err = p.r.as.ReadPointer(user + x86.VirtAddr(max(o.Path.Mount, 0))); err != nil {
		return path{}, err
	}
	at.dentry, err = p.r.as.ReadPointer(user + x86.VirtAddr(max(o.Path.Dentry, 0)))
	return at, err
}

// rootOf reads the root directory of a struct fs_struct. Of none it is no path:
// what is read against it leads to the top of all mounts.
func (p *pathReader) rootOf(fs x86.VirtAddr) (path, error) {
	o := &p.r.k.Offsets.FS
	if fs == 0 || o.RootMount < 0 || o.RootDentry < 0 {
		return path{}, nil
	}
	mount, err := p.r.as.ReadPointer(fs + x86.VirtAddr(o.RootMount))
	if err != nil {
		return path{}, err
	}
	dentry, err := p.r.as.ReadPointer(fs + x86.VirtAddr(o.RootDentry))
	return path{mount, dentry}, err
}

// SuperBlockOffsets lays out struct super_block: a file system that is mounted.
type SuperBlockOffsets struct {
	Device  int `c:"s_dev"`
	Type    int `c:"s_type"`
	Subtype int `c:"s_subtype"`
	Flags   int `c:"s_flags"`
}
