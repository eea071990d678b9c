package witness

import (
	"archive/tar"
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func archived(t *testing.T, files ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		err := w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o444})
		if err == nil {
			_, err = w.Write([]byte(files[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRead(t *testing.T) {
	disk := archived(t,
		"proc/version", "Linux version 1\n", "proc/12/stat", "x", "proc/12/task/12/stat", "x", "proc/12/task/14/stat", "y",
		"proc/12/task/14/comm", "", "proc/2/stat", "x", "proc/net/tcp", "", StateFile, `{"roles":{"yes":12}}`, completeFile, "")
	disk = append(disk, make([]byte, 4096)...) // the rest of it
	r, err := Read(bytes.NewReader(disk))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Processes(); !reflect.DeepEqual(got, []int{2, 12}) {
		t.Errorf("processes %v", got)
	}
	if got := r.Threads(12); !reflect.DeepEqual(got, []int{12, 14}) {
		t.Errorf("threads %v", got)
	}
	if s, err := r.State(); err != nil || s.Roles["yes"] != 12 {
		t.Errorf("%+v, %v", s, err)
	}
	if got := r.Text("proc/version"); got != "Linux version 1" {
		t.Errorf("%q", got)
	}
	if _, err := (Report{}).State(); err == nil {
		t.Error("without a state there is one")
	}
}

func TestReadIncomplete(t *testing.T) {
	whole := archived(t, "a", "1", completeFile, "")
	for name, disk := range map[string][]byte{
		"empty":       nil,
		"zeros":       make([]byte, 4096),
		"no end":      archived(t, "a", "1"),
		"cut":         whole[:len(whole)-512],
		"cut in data": whole[:512],
	} {
		if r, err := Read(bytes.NewReader(disk)); err == nil || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if _, err := Read(bytes.NewReader(make([]byte, 4096))); !errors.Is(err, ErrIncomplete) {
		t.Errorf("got %v", err)
	}
}
