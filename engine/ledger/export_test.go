package ledger

import (
	"os"
	"syscall"
	"testing"
)

// Disk is one that has so many bytes free, all for ledgers that are made while the test
// runs. What is written without room that was taken before finds it full.
type Disk struct{ Free int64 }

// NewDisk has ledgers be made on such a disk until the test ends.
func NewDisk(t testing.TB, free int64) *Disk {
	d := &Disk{free}
	wasCreate, wasAllocate := create, allocate
	t.Cleanup(func() { create, allocate = wasCreate, wasAllocate })
	create = func(path string) (file, error) {
		f, err := wasCreate(path)
		if err != nil {
			return nil, err
		}
		return &diskFile{File: f.(*os.File), disk: d}, nil
	}
	allocate = func(f file, _, n int64) error {
		if d.Free < n {
			return syscall.ENOSPC
		}
		d.Free -= n
		if f, ok := f.(*diskFile); ok {
			f.room += n
		}
		return nil
	}
	return d
}

type diskFile struct {
	*os.File
	disk *Disk
	room int64 // not written yet
}

func (f *diskFile) Write(data []byte) (int, error) {
	if int64(len(data)) > f.room {
		return 0, syscall.ENOSPC
	}
	f.room -= int64(len(data))
	return f.File.Write(data)
}
