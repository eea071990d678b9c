// Command hvi-hook is called by libvirt and by libxl while they start a domain:
// it hands the domain's policy to hvid, and holds the start until hvid is
// attached. Package hooks says more.
package main

import (
	"context"
	"os"
	"syscall"

	"github.com/xen-hvi/hvi/engine/xen/xenstore"
	"github.com/xen-hvi/hvi/hooks"
)

func main() {
	os.Exit(hooks.Run(context.Background(), hooks.Host{
		Args:   os.Args,
		Env:    os.Environ(),
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
		// Unlike os/exec this leaves every descriptor as the toolstack made it.
		Exec:       syscall.Exec,
		StoreWrite: storeWrite,
	}))
}

// storeWrite writes one node of xenstore.
func storeWrite(path, value string) error {
	c, err := xenstore.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Write(path, value)
}
