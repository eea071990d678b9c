package image

import (
	"context"
	"os"
	"path/filepath"
)

// listenerScenario is the one that needs files/listener.c.
const listenerScenario = "event-cost"

// listener builds files/listener.c against the toolstack's own library, which it
// finds where it runs, and returns the program.
func (b *Builder) listener(ctx context.Context) (string, error) {
	x := xens[1]
	for _, other := range xens {
		if other.name == b.Xen {
			x = other
		}
	}
	tree, err := b.tree(ctx, recipe{"xen-dev", x.suites, []string{"libxen-dev"}, []string{"udev"}})
	if err != nil {
		return "", err
	}
	dir, err := b.Artifact(ctx, "listener", []string{hash(source("listener.c")), tree}, func(dir string) error {
		from := filepath.Join(dir, "listener.c")
		if err := os.WriteFile(from, source("listener.c"), 0o644); err != nil {
			return err
		}
		err := tool(ctx, dir, "gcc", "-O2", "-s", "-I", filepath.Join(tree, "usr/include"), "-L", filepath.Join(tree, "usr/lib/x86_64-linux-gnu"),
			"-o", filepath.Join(dir, "listener"), from, "-lxenctrl", "-lxenevtchn", "-Wl,--allow-shlib-undefined")
		if err != nil {
			return err
		}
		return os.Remove(from)
	})
	return filepath.Join(dir, "listener"), err
}
