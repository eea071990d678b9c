package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
)

// fix corrects a mistake in a program, in place, and tells whether it found the one
// place.
type fix struct {
	name string
	do   func(program []byte) bool
}

// mended returns a copy of a program of a tree with as many fixes as could be made,
// and which those are. What is in another release than Debian 12's or 13's may need
// none, and is taken as it is.
func (b *Builder) mended(ctx context.Context, name, tree, program string, fixes []fix) (path string, fixed []bool, err error) {
	inputs := []string{filepath.Base(tree)}
	for _, f := range fixes {
		inputs = append(inputs, f.name)
	}
	base := filepath.Base(program)
	dir, err := b.Artifact(ctx, name, inputs, func(dir string) error {
		data, err := os.ReadFile(filepath.Join(tree, program))
		if err != nil {
			return err
		}
		for _, f := range fixes {
			if f.do(data) {
				if err := os.WriteFile(filepath.Join(dir, f.name), nil, 0o644); err != nil {
					return err
				}
			}
		}
		return os.WriteFile(filepath.Join(dir, base), data, 0o755)
	})
	if err != nil {
		return "", nil, err
	}
	for _, f := range fixes {
		_, err := os.Stat(filepath.Join(dir, f.name))
		fixed = append(fixed, err == nil)
	}
	return filepath.Join(dir, base), fixed, nil
}

// one finds what is in a program once.
func one(program, what []byte) (at int, ok bool) {
	return bytes.Index(program, what), bytes.Count(program, what) == 1
}
