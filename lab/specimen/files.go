package specimen

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
)

// sparse makes an empty file of a size.
func sparse(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// copySparse copies a file but for its pages of zeros.
func copySparse(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	var size int64
	for buf := make([]byte, 64<<10); ; {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !zero(buf[:n]) {
			if _, err := out.WriteAt(buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return out.Truncate(size)
		case err != nil:
			return err
		}
	}
}

// digHoles makes a file sparse.
func digHoles(name string) error {
	if err := copySparse(name+".sparse", name); err != nil {
		return err
	}
	return os.Rename(name+".sparse", name)
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func writeGzip(name string, data []byte) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(data)
	return errors.Join(err, z.Close(), f.Close())
}
