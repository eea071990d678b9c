package image

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

func TestReadModule(t *testing.T) {
	dir := t.TempDir()
	module(t, dir, "plain", "other")
	plain, err := os.ReadFile(filepath.Join(dir, "plain.ko"))
	if err != nil {
		t.Fatal(err)
	}
	var packed, zipped bytes.Buffer
	x, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&zipped)
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{x, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "packed.ko.xz"), packed.String(), 0o644)
	write(t, filepath.Join(dir, "zipped.ko.gz"), zipped.String(), 0o644)
	write(t, filepath.Join(dir, "odd.ko.zst"), "x", 0o644)
	write(t, filepath.Join(dir, "broken.ko.xz"), packed.String()[:packed.Len()/2], 0o644)
	for _, name := range []string{"plain.ko", "packed.ko.xz", "zipped.ko.gz"} {
		if got, err := readModule(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for _, name := range []string{"odd.ko.zst", "broken.ko.xz"} {
		if _, err := readModule(filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	module(t, dir, "other", "")
	got, err := withDependencies(dir, []string{"packed"})
	if err != nil || len(got) != 2 || filepath.Base(got[1]) != "packed.ko.xz" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestKernelFile(t *testing.T) {
	for _, name := range []string{"boot/vmlinuz-6.1", "usr/lib/modules/7.2/vmlinuz"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, name), "x", 0o644)
		if got, err := kernelFile(dir); err != nil || got != filepath.Join(dir, name) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if _, err := kernelFile(t.TempDir()); err == nil {
		t.Error("a kernel is found where there is none")
	}
}

func TestKernels(t *testing.T) {
	for _, k := range Kernels() {
		if got, ok := FindKernel(k.Name); !ok || got.pkg != k.pkg {
			t.Errorf("%s is not found", k.Name)
		}
	}
	if _, ok := FindKernel("2.6"); ok {
		t.Error("2.6 is found")
	}
}
