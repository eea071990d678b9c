package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/xen-hvi/hvi/lab/boot"
	"github.com/xen-hvi/hvi/lab/kernel"
)

//go:embed files
var files embed.FS

// source returns one of our own files.
func source(name string) []byte {
	data, err := files.ReadFile("files/" + name)
	if err != nil {
		panic(err) // it is compiled in
	}
	return data
}

// Images are the parts of a machine, as paths of files.
type Images struct {
	Xen          string // multiboot ELF
	Dom0Kernel   string // ELF
	Base, Guest  string // cpio archives: the control domain's system; what guests are made of
	GuestRelease string // the guest kernel's uname -r
	P2MShrunk    bool   // Dom0Kernel was changed by kernel.ShrinkP2M
}

// Images builds what every machine needs, what it can at a time.
func (b *Builder) Images(ctx context.Context) (Images, error) {
	var im Images
	var xen, dom0, guest, module, small string
	from, err := b.xen()
	if err != nil {
		return im, err
	}
	err = parallel(
		func() (err error) {
			if xen, err = b.tree(ctx, from); err != nil {
				return err
			}
			return b.hypervisor(ctx, xen, &im)
		},
		func() (err error) {
			if dom0, err = b.tree(ctx, treeDom0Kernel); err != nil {
				return err
			}
			return b.dom0Kernel(ctx, dom0, &im)
		},
		func() (err error) {
			if guest, err = b.tree(ctx, treeGuestKernel); err != nil {
				return err
			}
			module, err = b.modules(ctx, guest, false)
			return err
		},
		func() (err error) {
			small, err = b.small(ctx)
			return err
		},
	)
	if err != nil {
		return im, err
	}
	return im, parallel(
		func() error { return b.base(ctx, xen, dom0, &im) },
		func() error {
			g, err := b.guest(ctx, xen, guest, module, small)
			im.Guest, im.GuestRelease = g.Archive, g.Release
			return err
		},
	)
}

// parallel calls functions at the same time and joins their errors.
func parallel(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (b *Builder) hypervisor(ctx context.Context, tree string, im *Images) error {
	dir, err := b.Artifact(ctx, "hypervisor", []string{filepath.Base(tree)}, func(dir string) error {
		from, err := only(tree, "boot/xen-*-amd64.gz")
		if err != nil {
			return err
		}
		packed, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		data, err := io.ReadAll(z)
		if err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		return os.WriteFile(filepath.Join(dir, "xen"), data, 0o644)
	})
	im.Xen = filepath.Join(dir, "xen")
	return err
}

func (b *Builder) dom0Kernel(ctx context.Context, tree string, im *Images) error {
	const shrunk = "shrunk"
	dir, err := b.Artifact(ctx, "dom0-kernel", []string{filepath.Base(tree)}, func(dir string) error {
		image, _, err := unpackKernel(tree)
		if err != nil {
			return err
		}
		if kernel.ShrinkP2M(image) {
			if err := os.WriteFile(filepath.Join(dir, shrunk), nil, 0o644); err != nil {
				return err
			}
		}
		if image, err = kernel.Compact(image); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "vmlinux"), image, 0o644)
	})
	if err != nil {
		return err
	}
	im.Dom0Kernel = filepath.Join(dir, "vmlinux")
	_, err = os.Stat(filepath.Join(dir, shrunk))
	im.P2MShrunk = err == nil
	return nil
}

// unpackKernel returns the ELF and the release of a tree's only kernel.
func unpackKernel(tree string) (image []byte, release string, err error) {
	from, err := kernelFile(tree)
	if err != nil {
		return nil, "", err
	}
	packed, err := os.ReadFile(from)
	if err != nil {
		return nil, "", err
	}
	if release, err = kernel.Release(packed); err != nil {
		return nil, "", fmt.Errorf("%s: %w", from, err)
	}
	if image, err = kernel.Unpack(packed); err != nil {
		return nil, "", fmt.Errorf("%s: %w", from, err)
	}
	return image, release, nil
}

// xenPrograms are the toolstack's programs that the control domain has.
var xenPrograms = []string{"xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "libxl-save-helper", "xenctx", "xen-hvmctx", "lsevtchn"}

// dom0Modules are the control domain's kernel modules, as /init loads them.
var dom0Modules = []string{"xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs/xenfs"}

func (b *Builder) base(ctx context.Context, xen, dom0 string, im *Images) error {
	init := source("dom0-init")
	dir, err := b.Artifact(ctx, "base", []string{filepath.Base(xen), filepath.Base(dom0), hash(init)}, func(dir string) error {
		l := newLayer()
		defer l.close()
		l.libs = []string{filepath.Join(xen, "usr/lib/x86_64-linux-gnu")}
		for _, d := range []string{"proc", "sys", "dev", "root", "run/xen", "run/xenstored", "run/lock",
			"etc/xen/auto", "var/lib/xen", "var/lib/xenstored", "var/log/xen", "usr/sbin", "lab"} {
			l.dir(d, 0o755)
		}
		l.dir("tmp", 0o1777)
		for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
			l.link(d, "usr/"+d)
		}
		l.link("var/run", "/run")
		l.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
		l.text("etc/group", "root:x:0:\n", 0o644)
		l.text("etc/xen/xl.conf", "autoballoon=\"off\"\n", 0o644)
		l.text("init", string(init), 0o755)

		box, err := merged(xen, "bin/busybox")
		if err != nil {
			return err
		}
		if err := busybox(ctx, l, box, "usr/bin"); err != nil {
			return err
		}
		loader, err := merged(xen, "lib64/ld-linux-x86-64.so.2")
		if err != nil {
			return err
		}
		if err := l.file("usr/lib64/ld-linux-x86-64.so.2", loader, 0o755); err != nil {
			return err
		}
		// glibc opens it when a thread is cancelled, so no ELF header names it.
		if err := l.library("libgcc_s.so.1"); err != nil {
			return err
		}
		bin, err := only(xen, "usr/lib/xen-4.*/bin")
		if err != nil {
			return err
		}
		home, err := filepath.Rel(xen, bin)
		if err != nil {
			return err
		}
		for _, p := range xenPrograms {
			if err := l.program(filepath.Join(home, p), filepath.Join(bin, p)); err != nil {
				return err
			}
			l.link("usr/sbin/"+p, "/"+filepath.Join(home, p))
		}
		for _, p := range []string{"exists", "ls", "list", "read", "rm", "write", "watch", "chmod"} {
			if err := l.program("usr/bin/xenstore-"+p, filepath.Join(xen, "usr/bin/xenstore-"+p)); err != nil {
				return err
			}
		}
		if err := l.copyTree("etc/xen/scripts", filepath.Join(xen, "etc/xen/scripts")); err != nil {
			return err
		}
		for _, m := range dom0Modules {
			from, err := only(dom0, "lib/modules/*/kernel/drivers/xen/"+m+".ko")
			if err != nil {
				return err
			}
			if err := l.file("usr/lib/modules/"+filepath.Base(from), from, 0o644); err != nil {
				return err
			}
		}
		return l.writeFile(filepath.Join(dir, "base.cpio"))
	})
	im.Base = filepath.Join(dir, "base.cpio")
	return err
}

// busybox adds a static busybox and all its names.
func busybox(ctx context.Context, l *layer, from, to string) error {
	if err := l.file(to+"/busybox", from, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, from, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", from, err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			l.link(to+"/"+name, "busybox")
		}
	}
	return nil
}

// guestFiles are our own files in a guest.
var guestFiles = map[string]string{
	"init":          "guest-init",
	"bin/attack":    "guest-attack",
	"bin/load":      "guest-load",
	"sbin/poweroff": "guest-poweroff",
	"sbin/reboot":   "guest-reboot",
}

// guestModules are the modules of its kernel that a guest has, for `insmod`:
// a network card's, and some that are there to be loaded and unloaded.
var guestModules = []string{"xen-netfront", "loop", "fat"}

// Guest is what guests of one kernel are made of.
type Guest struct {
	Archive string // a cpio archive with the folder guest
	Release string // the kernel's uname -r
}

// Guest builds what guests of a kernel are made of.
func (b *Builder) Guest(ctx context.Context, k Kernel) (g Guest, err error) {
	var xen, tree, attacks, small string
	err = parallel(
		func() (err error) { xen, err = b.tree(ctx, treeXen); return err },
		func() (err error) { tree, err = b.tree(ctx, k.recipe()); return err },
		func() (err error) { attacks, err = b.Attacks(ctx, k); return err },
		func() (err error) { small, err = b.small(ctx); return err },
	)
	if err != nil {
		return g, err
	}
	return b.guest(ctx, xen, tree, attacks, small)
}

func (b *Builder) guest(ctx context.Context, xen, tree, attacks, small string) (g Guest, err error) {
	inputs := []string{filepath.Base(xen), filepath.Base(tree), filepath.Base(attacks), filepath.Base(small), strings.Join(guestModules, " "), "unpacked"}
	first := len(inputs)
	for name, src := range guestFiles {
		inputs = append(inputs, name+" "+hash(source(src)))
	}
	slices.Sort(inputs[first:]) // the order of a map is none
	dir, err := b.Artifact(ctx, "guest", inputs, func(dir string) error {
		image, release, err := guestKernel(tree)
		if err != nil {
			return err
		}
		in := newLayer()
		defer in.close()
		for _, d := range []string{"proc", "sys", "dev", "tmp", "sbin"} {
			in.dir(d, 0o755)
		}
		box, err := merged(xen, "bin/busybox")
		if err != nil {
			return err
		}
		if err := busybox(ctx, in, box, "bin"); err != nil {
			return err
		}
		for name, src := range guestFiles {
			in.text(name, string(source(src)), 0o755)
		}
		if err := in.copyTree("lib", attacks); err != nil {
			return err
		}
		for _, name := range []string{"bpfload", "exploit"} {
			if err := in.file("bin/"+name, filepath.Join(small, name), 0o755); err != nil {
				return err
			}
		}
		modules, err := withDependencies(filepath.Join(tree, "lib/modules"), guestModules)
		if err != nil {
			return err
		}
		for _, from := range modules {
			data, err := readModule(from)
			if err != nil {
				return err
			}
			name, _, _ := strings.Cut(filepath.Base(from), ".ko")
			in.text("lib/"+name+".ko", string(data), 0o644)
		}
		initrd, err := in.bytes()
		if err != nil {
			return err
		}
		out := newLayer()
		defer out.close()
		tiny, err := os.ReadFile(filepath.Join(small, "tiny"))
		if err != nil {
			return err
		}
		disk, err := os.ReadFile(filepath.Join(small, "hvm.img"))
		if err != nil {
			return err
		}
		dump, err := os.ReadFile(filepath.Join(small, "dumpcore.so"))
		if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(dir, "guest"), 0o755); err != nil {
			return err
		}
		for name, data := range map[string][]byte{
			"guest/vmlinux": image, "guest/initrd": initrd, "guest/release": []byte(release + "\n"), "guest/tiny": tiny,
			"guest/hvm.img": disk, "guest/dumpcore.so": dump,
		} {
			out.text(name, string(data), 0o644)
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				return err
			}
		}
		return out.writeFile(filepath.Join(dir, "guest.cpio"))
	})
	if err != nil {
		return g, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "guest/release"))
	return Guest{Archive: filepath.Join(dir, "guest.cpio"), Release: strings.TrimSpace(string(release))}, err
}

// guestKernel returns a tree's kernel as guests boot it, and its release.
func guestKernel(tree string) (image []byte, release string, err error) {
	if image, release, err = unpackKernel(tree); err == nil {
		image, err = kernel.Compact(image)
	}
	return image, release, err
}

// modules builds the attack modules against the headers in a tree and returns
// the folder that holds them: pwn.ko and its siblings. The compiler is this
// machine's, or the tree's own.
func (b *Builder) modules(ctx context.Context, tree string, own bool) (string, error) {
	src := filepath.Join(b.Root, "testdata", "attack")
	sources, err := os.ReadDir(src)
	if err != nil {
		return "", err
	}
	inputs := []string{filepath.Base(tree)}
	for _, f := range sources {
		data, err := os.ReadFile(filepath.Join(src, f.Name()))
		if err != nil {
			return "", err
		}
		inputs = append(inputs, f.Name()+" "+hash(data))
	}
	return b.Artifact(ctx, "attack-modules", inputs, func(dir string) error {
		return buildModules(ctx, dir, os.DirFS(src), tree, own)
	})
}

// buildModules builds what a Makefile of sources names against the headers in a
// tree, into dir.
func buildModules(ctx context.Context, dir string, src fs.FS, tree string, own bool) error {
	work := filepath.Join(dir, "build")
	if err := os.CopyFS(work, src); err != nil {
		return err
	}
	// The headers ask for the very compiler that built the kernel; any that
	// knows its options makes a module of the same layout. Type information
	// of a module's own would take one more program, pahole.
	args := []string{"CONFIG_DEBUG_INFO_BTF_MODULES=", "M=" + work}
	kbuild, path := "", ""
	var err error
	if own {
		if path, kbuild, err = toolchain(tree, dir); err != nil {
			return err
		}
		args = append(args, "PATH="+path+":"+os.Getenv("PATH"))
	} else {
		args = append(args, "CC=gcc")
	}
	headers, err := kernelHeaders(tree, dir, kbuild)
	if err != nil {
		return err
	}
	if err := tool(ctx, work, "make", append(args, "-C", headers, "modules")...); err != nil {
		return err
	}
	built, err := filepath.Glob(filepath.Join(work, "*.ko"))
	if err != nil {
		return err
	}
	for _, ko := range built {
		if err := tool(ctx, work, "strip", "--strip-debug", "-o", filepath.Join(dir, filepath.Base(ko)), ko); err != nil {
			return err
		}
	}
	for _, temporary := range []string{work, headers, path, kbuild} {
		if temporary == "" {
			continue
		}
		if err := os.RemoveAll(temporary); err != nil {
			return err
		}
	}
	return nil
}

// kernelHeaders makes a folder in dir that stands in for the package
// linux-headers-*, whose Makefile names another package's place on an installed
// system. Where kbuild is not "", it stands in for the package linux-kbuild-*.
func kernelHeaders(tree, dir, kbuild string) (string, error) {
	pkg, err := only(tree, "usr/src/linux-headers-*-amd64")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "headers")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(pkg)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		from, to := filepath.Join(pkg, e.Name()), filepath.Join(out, e.Name())
		if kbuild != "" && (e.Name() == "scripts" || e.Name() == "tools") {
			from = filepath.Join(kbuild, e.Name())
		}
		if e.Name() != "Makefile" {
			if err := os.Symlink(from, to); err != nil {
				return "", err
			}
			continue
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		data = bytes.ReplaceAll(data, []byte("/usr/src/"+filepath.Base(pkg)), []byte(out)) // in 7.2, where to build
		data = bytes.ReplaceAll(data, []byte("/usr/src/"), []byte(tree+"/usr/src/"))
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return "", err
		}
	}
	return out, nil
}

// freestanding are gcc's options for code that runs on a bare machine, in 32-bit
// mode and in the order of its source.
var freestanding = []string{"-m32", "-march=i686", "-mgeneral-regs-only", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
	"-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-fno-toplevel-reorder", "-Os"}

// bare compiles one of our sources for a bare machine and links it to a file.
func bare(ctx context.Context, dir, src, to string, link []string) error {
	from, obj := filepath.Join(dir, src), filepath.Join(dir, src+".o")
	if err := os.WriteFile(from, source(src), 0o644); err != nil {
		return err
	}
	if err := tool(ctx, dir, "gcc", append(slices.Clone(freestanding), "-c", "-o", obj, from)...); err != nil {
		return err
	}
	args := append([]string{"-m", "elf_i386", "-N", "--no-warn-rwx-segments", "-e", "start", "-s", "-o", filepath.Join(dir, to), obj}, link...)
	if err := tool(ctx, dir, "ld", args...); err != nil {
		return err
	}
	return errors.Join(os.Remove(from), os.Remove(obj))
}

// small builds the guest of files/tiny.c, as tiny, the disk of files/hvm.c, as
// hvm.img, and the library of files/dumpcore.c, as dumpcore.so, and returns the
// folder that holds them.
func (b *Builder) small(ctx context.Context) (string, error) {
	// The note beside the text: where ld puts it by itself is outside of such a
	// small guest's memory. All of it where nothing of an HVM guest's firmware is.
	tiny := []string{"--section-start=.note.Xen=0x400000", "-Ttext=0x400100"}
	disk := []string{"-Ttext=0x7c00", "--oformat=binary"}
	library := []string{"-shared", "-fPIC", "-nostdlib", "-Os", "-s"} // what it needs, the program has
	program := []string{"-static", "-no-pie", "-nostdlib", "-Os", "-s", "-fno-stack-protector"}
	inputs := slices.Concat([]string{hash(source("tiny.c")), hash(source("hvm.c")), hash(source("dumpcore.c")), hash(source("bpfload.c")), hash(source("exploit.c"))}, freestanding, tiny, disk, library, program)
	return b.Artifact(ctx, "small", inputs, func(dir string) error {
		if err := bare(ctx, dir, "tiny.c", "tiny", tiny); err != nil {
			return err
		}
		if err := bare(ctx, dir, "hvm.c", "hvm.img", disk); err != nil {
			return err
		}
		for _, c := range []struct {
			from, to string
			flags    []string
		}{{"dumpcore.c", "dumpcore.so", library}, {"bpfload.c", "bpfload", program}, {"exploit.c", "exploit", program}} {
			from := filepath.Join(dir, c.from)
			if err := os.WriteFile(from, source(c.from), 0o644); err != nil {
				return err
			}
			if err := tool(ctx, dir, "gcc", append(slices.Clone(c.flags), "-o", filepath.Join(dir, c.to), from)...); err != nil {
				return err
			}
			if err := os.Remove(from); err != nil {
				return err
			}
		}
		st, err := os.Stat(filepath.Join(dir, "hvm.img"))
		if err != nil {
			return err
		}
		if st.Size() > 8*boot.SectorSize {
			return fmt.Errorf("hvm.c makes %d bytes: it loads 8 sectors", st.Size())
		}
		return os.Truncate(filepath.Join(dir, "hvm.img"), 2*boot.Geometry)
	})
}

// Loader builds the boot sector of [boot.Write].
func (b *Builder) Loader(ctx context.Context) ([]byte, error) {
	dir, err := b.Artifact(ctx, "loader", []string{hash(boot.Source)}, func(dir string) error {
		src, obj := filepath.Join(dir, "loader.s"), filepath.Join(dir, "loader.o")
		if err := os.WriteFile(src, boot.Source, 0o644); err != nil {
			return err
		}
		if err := tool(ctx, dir, "as", "--32", "-o", obj, src); err != nil {
			return err
		}
		return tool(ctx, dir, "ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", filepath.Join(dir, "loader"), obj)
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "loader"))
}

// Everything builds all that this package can.
func (b *Builder) Everything(ctx context.Context) error {
	return parallel(
		func() error { _, err := b.Images(ctx); return err },
		func() error { _, err := b.Loader(ctx); return err },
		func() error { _, err := b.Bochs(ctx); return err },
		func() error { _, err := b.QEMU(ctx); return err },
		func() error { _, err := b.Debian(ctx); return err },
		func() error { _, err := b.GuestSystem(ctx); return err },
	)
}
