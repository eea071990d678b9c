package sink

import (
	"errors"
	"strings"
	"testing"
)

// disk has room for so many bytes.
type disk struct {
	strings.Builder
	room int
}

func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	d.Builder.Write(b[:n])
	if n < len(b) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

// TestTornLine: a line that the disk had no room for is written again, whole.
func TestTornLine(t *testing.T) {
	for _, tt := range []struct {
		rooms []int // of each try
		want  string
	}{
		{[]int{9}, "{1}\n"},
		{[]int{0, 9}, "{1}\n"},
		{[]int{2, 9}, "{1\n{1}\n"},
		{[]int{2, 0, 9}, "{1\n{1}\n"},
		{[]int{2, 1, 9}, "{1\n{1}\n"},
		{[]int{2, 3, 9}, "{1\n{1\n{1}\n"},
	} {
		var d disk
		var e lineEnd
		var err error
		for _, d.room = range tt.rooms {
			err = e.write(&d, []byte("{1}\n"))
		}
		if err != nil || d.String() != tt.want {
			t.Errorf("%v: %q, %v; want %q", tt.rooms, d.String(), err, tt.want)
		}
	}
}
