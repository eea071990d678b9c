package command

import (
	"testing"

	"github.com/xen-hvi/hvi/control"
)

func TestDumpLine(t *testing.T) {
	for want, d := range map[string]*control.MemoryDump{
		"":                      nil,
		"waiting":               {State: "waiting"},
		"writing, 12 of 64 MiB": {State: "writing", Memory: 12 << 20, Total: 64 << 20},
		"/d/a.lime, 64 MiB of memory, 9 MiB on disk": {State: "written", File: "/d/a.lime", Memory: 64 << 20, Stored: 9 << 20, Total: 64 << 20},
		"failed: no room in /d":                      {State: "failed", Reason: "no room in /d", Total: 64 << 20},
	} {
		if got := dumpLine(d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
