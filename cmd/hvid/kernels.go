package main

import (
	"path/filepath"

	"github.com/xen-hvi/hvi/engine/guest/linux"
)

// knownKernels is what guests' kernels are identified with besides their own
// memory: the kernels seen before, and the admin's profiles. Without either
// guests are protected all the same, so what is wrong there is logged. done waits
// for what is still being written.
func knownKernels(opt settings) (known linux.Options, done func()) {
	known.ISFs = linux.NewISFDir(filepath.Join(opt.files.Dir, "profiles"))
	loaded := make(chan struct{})
	go func() { // a second for each, before a guest waits for it
		defer close(loaded)
		for _, err := range known.ISFs.Load() {
			opt.log.Warn("read kernel profiles; a kernel without BTF may need this one", "err", err)
		}
	}()
	if opt.CacheDir != "" {
		var err error
		known.Cache, err = linux.OpenCache(opt.CacheDir, func(err error) {
			opt.log.Warn("remember a kernel; it is read anew for the next guest", "err", err)
		})
		if err != nil {
			opt.log.Warn("open the cache of kernels; hvid goes on without", "err", err)
		}
	}
	return known, func() {
		<-loaded
		known.Cache.Close()
	}
}
