package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/xen-hvi/hvi/lab/archive"
	"github.com/xen-hvi/hvi/lab/boot"
)

// Debian is a control domain with systemd, as files.
type Debian struct {
	Boot string // cpio archive: finds the disks and goes on there
	Disk string // ext4: the system; never written, so that machines can share it
	// Changes says what is not Debian's in it.
	Changes []string
}

// debianPackages are what the system is asked to have; it gets what they depend
// on too.
var debianPackages = []string{
	"usr-is-merged", "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd",
	"apt", "kmod", "procps", "iproute2", "bridge-utils", "busybox-static", "logrotate", "apparmor", "strace",
	"xen-utils-4.17", "xen-utils-common", "xenstore-utils", "qemu-system-xen",
	"libvirt-daemon-system", "libvirt-daemon-driver-xen", "libvirt-clients",
}

// debianModules are what the system's first process loads, besides what they
// depend on: the disks of both machines, their file system, and the checksum
// that it asks for by name.
var debianModules = []string{"virtio_pci", "virtio_blk", "ata_piix", "sd_mod", "crc32c_generic", "ext4", "overlay"}

// systemModules are the kernel modules that the system has, besides what they
// depend on, as files or folders of /lib/modules/RELEASE/kernel: what an
// emulated server needs, since every module more makes each search longer.
var systemModules = []string{
	"arch/x86/crypto", "crypto", "lib",
	"drivers/ata", "drivers/block", "drivers/md", "drivers/scsi/sd_mod.ko", "drivers/scsi/sr_mod.ko", "drivers/virtio", "drivers/xen",
	"drivers/net/dummy.ko", "drivers/net/macvtap.ko", "drivers/net/tun.ko", "drivers/net/veth.ko", "drivers/net/xen-netback",
	"fs/autofs", "fs/binfmt_misc.ko", "fs/configfs", "fs/ext4", "fs/fat", "fs/fuse", "fs/isofs", "fs/nls", "fs/overlayfs",
	"net/8021q", "net/bridge", "net/ipv4", "net/ipv6", "net/netfilter", "net/openvswitch", "net/packet", "net/sched", "net/unix", "net/xfrm",
}

// debianSize is how large the system's disk is. What nothing is written to
// takes no room on the host's.
const debianSize = 2 << 30

// Debian builds the control domain's Debian. It needs root, for it installs
// packages into a folder that it changes into.
func (b *Builder) Debian(ctx context.Context) (Debian, error) {
	if b.Xen != "" && b.Xen != DefaultXen {
		return Debian{}, fmt.Errorf("the lab's Debian has Xen %s, not %s: leave out scenarios that run on it", DefaultXen, b.Xen)
	}
	xen, err := b.tree(ctx, treeXen)
	if err != nil {
		return Debian{}, err
	}
	kernel, err := b.tree(ctx, treeDom0Kernel)
	if err != nil {
		return Debian{}, err
	}
	d := Debian{Changes: []string{"libvirt's processor models do without SEP"}}
	err = parallel(
		func() (err error) { d.Boot, err = b.debianBoot(ctx, xen, kernel); return err },
		func() (err error) { d.Disk, err = b.debianDisk(ctx, kernel); return err },
	)
	return d, err
}

func (b *Builder) debianBoot(ctx context.Context, xen, kernel string) (string, error) {
	const name = "boot.cpio"
	init := source("debian-boot")
	inputs := []string{filepath.Base(xen), filepath.Base(kernel), hash(init), strings.Join(debianModules, " ")}
	dir, err := b.Artifact(ctx, "debian-boot", inputs, func(dir string) error {
		l := newLayer()
		defer l.close()
		for _, d := range []string{"proc", "sys", "dev"} {
			l.dir(d, 0o755)
		}
		l.text("init", string(init), 0o755)
		if err := busybox(ctx, l, filepath.Join(xen, "bin/busybox"), "bin"); err != nil {
			return err
		}
		modules, err := withDependencies(filepath.Join(kernel, "lib/modules"), debianModules)
		if err != nil {
			return err
		}
		var order strings.Builder
		for _, from := range modules {
			order.WriteString(filepath.Base(from) + "\n")
			if err := l.file(path.Join("modules", filepath.Base(from)), from, 0o644); err != nil {
				return err
			}
		}
		l.text("modules/order", order.String(), 0o644)
		return l.writeFile(filepath.Join(dir, name))
	})
	return filepath.Join(dir, name), err
}

func (b *Builder) debianDisk(ctx context.Context, kernel string) (string, error) {
	const name = "system.ext4"
	dir, err := b.install(ctx, "debian", debianDom0, kernel, func(root, dir string) error {
		return fileSystem(ctx, root, filepath.Join(dir, name), "system", debianSize)
	})
	return filepath.Join(dir, name), err
}

// installation is a Debian to be installed into a folder.
type installation struct {
	packages []string // that it is asked to have
	modules  []string // of its kernel, see installModules
	files    string   // the folder of our own files in it
	setup    string   // our script that follows debian-setup
}

// debianDom0 is the control domain's system.
var debianDom0 = installation{debianPackages, systemModules, "files/debian", "debian-setup-dom0"}

// install returns the artifact that pack has made of an installed system, whose
// folder is gone afterwards.
func (b *Builder) install(ctx context.Context, name string, in installation, kernel string, pack func(root, dir string) error) (string, error) {
	pkgs, err := b.Archive.Closure(ctx, bookworm, in.packages, archive.ClosureOptions{Essential: true})
	if err != nil {
		return "", err
	}
	script := append(source("debian-setup"), source(in.setup)...)
	inputs := append([]string{filepath.Base(kernel), hash(script)}, in.modules...)
	for _, p := range pkgs {
		inputs = append(inputs, p.SHA256)
	}
	own, err := ownFiles(in.files)
	if err != nil {
		return "", err
	}
	for _, f := range own {
		inputs = append(inputs, f.name+" "+hash(f.data))
	}
	return b.Artifact(ctx, name, inputs, func(dir string) (err error) {
		root := filepath.Join(dir, "root")
		defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
		if err := b.debianRoot(ctx, root, pkgs); err != nil {
			return err
		}
		release, err := installModules(kernel, filepath.Join(root, "usr"), in.modules)
		if err != nil {
			return err
		}
		for _, f := range own {
			at := filepath.Join(root, "lab-files", f.name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, f.data, f.perm)); err != nil {
				return err
			}
		}
		if err := setup(ctx, root, script, release); err != nil {
			return err
		}
		return pack(root, dir)
	})
}

// ownFile is a file of ours in the system.
type ownFile struct {
	name string
	data []byte
	perm fs.FileMode
}

// ownFiles returns the files below one of our folders. What begins as a script
// is executable; the compiler keeps no modes.
func ownFiles(below string) ([]ownFile, error) {
	var out []ownFile
	err := fs.WalkDir(files, below, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := files.ReadFile(p)
		f := ownFile{name: strings.TrimPrefix(p, below+"/"), data: data, perm: 0o644}
		if bytes.HasPrefix(data, []byte("#!")) {
			f.perm = 0o755
		}
		out = append(out, f)
		return err
	})
	return out, err
}

// debianRoot fills a folder with what debian-setup installs packages from.
func (b *Builder) debianRoot(ctx context.Context, root string, pkgs []archive.Package) error {
	if os.Geteuid() != 0 {
		return errors.New("installing Debian into a folder needs root")
	}
	// The programs that install are there already, as far as they must be to run.
	first, err := b.Archive.Closure(ctx, bookworm, []string{"usr-is-merged", "mawk", "mount"}, archive.ClosureOptions{Essential: true})
	if err != nil {
		return err
	}
	tree, err := b.Archive.Tree(ctx, "debian-essential", first)
	if err != nil {
		return err
	}
	if err := tool(ctx, "/", "cp", "-a", tree, root); err != nil {
		return err
	}
	debs, err := b.Archive.Download(ctx, pkgs)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(root, "lab-debs"), 0o755); err != nil {
		return err
	}
	for i, p := range pkgs {
		if err := linkOrCopy(debs[i], filepath.Join(root, "lab-debs", p.Name+".deb")); err != nil {
			return err
		}
	}
	return nil
}

// installModules copies a kernel's modules, each a file or a folder of
// /lib/modules/RELEASE/kernel, with what they depend on to lib/modules below a
// folder, and returns the kernel's release.
func installModules(kernel, to string, modules []string) (release string, err error) {
	from, err := only(kernel, "lib/modules/*")
	if err != nil {
		return "", err
	}
	var names []string
	for _, m := range modules {
		err := filepath.WalkDir(filepath.Join(from, "kernel", m), func(p string, d fs.DirEntry, err error) error {
			if name, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok && err == nil {
				names = append(names, name)
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	all, err := withDependencies(filepath.Join(from, "kernel"), names)
	if err != nil {
		return "", err
	}
	for _, n := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		all = append(all, filepath.Join(from, n))
	}
	release = filepath.Base(from)
	for _, p := range all {
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return "", err
		}
		at := filepath.Join(to, "lib/modules", release, rel)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), linkOrCopy(p, at)); err != nil {
			return "", err
		}
	}
	return release, nil
}

// setup runs a script changed into a root, with mounts and processes of its own
// that end with it.
func setup(ctx context.Context, root string, script []byte, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-s"}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.Stdin = bytes.NewReader(script)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("set up Debian: %w\n%s", err, tail(out.String(), 4000))
	}
	return nil
}

// linkOrCopy makes a file of the cache appear elsewhere, where none is. It is
// not to be written to.
func linkOrCopy(from, to string) (err error) {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from) // on another file system
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = io.Copy(out, in)
		err = errors.Join(err, out.Close())
	}
	return errors.Join(err, in.Close())
}

// RunDisk puts together what the lab brings for one run and writes it to file,
// as ext4: the runner and the programs under test in bin, the plan, what guests
// are made of, and the package, where the checkout makes one.
func (b *Builder) RunDisk(ctx context.Context, im Images, file string, plan []string, bare bool) (err error) {
	dir, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bin, guest := filepath.Join(dir, "bin"), filepath.Join(dir, "guest")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Mkdir(guest, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return err
	}
	if err := b.compile(ctx, bin, bare); err != nil {
		return err
	}
	if !bare {
		if err := b.compileProbe(ctx, bin); err != nil {
			return err
		}
	}
	from := filepath.Join(filepath.Dir(im.Guest), "guest")
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	size := int64(0)
	for _, e := range entries {
		if err := linkOrCopy(filepath.Join(from, e.Name()), filepath.Join(guest, e.Name())); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "plan"), []byte(strings.Join(plan, " ")+"\n"), 0o644); err != nil {
		return err
	}
	if !bare {
		if err := b.debPackage(ctx, filepath.Join(dir, "hvi.deb")); err != nil {
			return err
		}
	}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			size += st.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	const room = 16 << 20 // for what the file system itself needs
	return fileSystem(ctx, dir, file, "lab", size+room)
}

// fileSystem writes a disk with a folder's files. Nothing will be written to it,
// so it needs no journal and no room to spare.
func fileSystem(ctx context.Context, dir, file, label string, size int64) error {
	err := tool(ctx, "/", "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^metadata_csum,^resize_inode", "-E", "root_owner=0:0", "-L", label,
		"-d", dir, file, strconv.FormatInt(size>>10, 10)+"k")
	if err != nil {
		return err
	}
	return os.Truncate(file, (size+boot.Geometry-1)/boot.Geometry*boot.Geometry)
}

// debPackage builds the package under test, where the checkout can, and puts it
// at file.
func (b *Builder) debPackage(ctx context.Context, file string) error {
	build := filepath.Join(b.Root, "packaging", "build")
	if _, err := os.Stat(build); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	dir, err := os.MkdirTemp("", "hvi-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := tool(ctx, b.Root, "env", "FORMATS=deb", build, dir); err != nil {
		return err
	}
	deb, err := only(dir, "hvi_*_amd64.deb")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
