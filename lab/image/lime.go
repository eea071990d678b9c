package image

import (
	"context"
	"os"
	"path/filepath"

	"github.com/xen-hvi/hvi/lab/witness"
)

// treeLiME has the source of LiME, the module with which most memory images of
// Linux machines are taken.
var treeLiME = recipe{"lime", bookworm, []string{"lime-forensics-dkms"}, []string{"dkms"}}

// LiME builds Debian's LiME for a kernel of Debian 12 and returns the archive
// (cpio) that adds it to a witness' ramdisk, where it is called "lime".
func (b *Builder) LiME(ctx context.Context, k Kernel) (string, error) {
	tree, err := b.tree(ctx, treeLiME)
	if err != nil {
		return "", err
	}
	headers, own, err := b.headers(ctx, k)
	if err != nil {
		return "", err
	}
	const archive = "lime.cpio"
	dir, err := b.Artifact(ctx, "lime-"+k.Name, []string{filepath.Base(tree), filepath.Base(headers)}, func(dir string) error {
		src, err := only(tree, "usr/src/lime-forensics-*")
		if err != nil {
			return err
		}
		if err := buildModules(ctx, dir, os.DirFS(src), headers, own); err != nil {
			return err
		}
		l := newLayer()
		defer l.close()
		if err := l.file(filepath.Join(witness.ModuleDir, "lime.ko")[1:], filepath.Join(dir, "lime.ko"), 0o644); err != nil {
			return err
		}
		return l.writeFile(filepath.Join(dir, archive))
	})
	return filepath.Join(dir, archive), err
}
