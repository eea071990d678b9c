package linux

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/report"
)

// TestImagesPrograms compares eBPF programs with what the guest says about
// those that it loaded itself, and with its interpreter's and compiler's own
// symbols.
func TestImagesPrograms(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			own := img.ownView(t, `^(state\.json|proc/kallsyms|proc/[0-9]+/fd/[0-9]+)$`)
			var state struct {
				Programs []struct {
					ID                        uint32
					Name, Type, Tag, Attached string
				}
			}
			if err := json.Unmarshal([]byte(own["state.json"]), &state); err != nil {
				t.Fatal(err)
			}
			k, err := Identify(img.memory(t), img.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.NewReader(img.Regs).Programs()
			if err != nil {
				t.Fatal(err)
			}
			if got.Reading.Retries != 0 || got.Reading.Incomplete != nil {
				t.Errorf("of a guest that stands still: %+v", got.Reading)
			}
			found, want := map[string]bool{}, map[string]bool{}
			byID := map[uint32]report.Program{}
			for _, p := range got.Items {
				t.Logf("%+v", p)
				byID[p.ID] = p
				// The compiler's code has a symbol with the tag and the name.
				if sym := fmt.Sprintf("%016x t bpf_prog_%s_%s\t[bpf]", uint64(p.Code), p.Tag, p.Name); !strings.Contains(own["proc/kallsyms"], sym) {
					t.Errorf("program %d: no symbol %q", p.ID, sym)
				}
			}
			for _, p := range state.Programs {
				want[fmt.Sprintf("%d %s %s %s", p.ID, p.Name, strings.ToLower(p.Type), p.Tag)] = true
				g := byID[p.ID]
				found[fmt.Sprintf("%d %s %s %s", g.ID, g.Name, strings.ReplaceAll(g.Type, "_", ""), g.Tag)] = true
				var targets []string
				for _, a := range g.Attached {
					targets = append(targets, a.Kind+" "+string(a.Target))
				}
				attached := p.Attached
				switch attached {
				case "cgroup":
					attached = "cgroup /odd.slice"
				case "socket": // to one that its process has open
					if len(targets) == 1 {
						inode := strings.TrimPrefix(targets[0], "socket ")
						for name, to := range own {
							if to == inode && strings.HasPrefix(name, "proc/") {
								attached = "socket " + inode
							}
						}
					}
				case "":
					continue // the kernel would not attach it
				}
				if len(targets) != 1 || targets[0] != attached {
					t.Errorf("program %d is attached to %q, want %q", p.ID, targets, attached)
				}
			}
			compareLines(t, found, want)
			if len(got.Items) != len(state.Programs) {
				t.Errorf("%d programs, the guest has loaded %d", len(got.Items), len(state.Programs))
			}
		})
	}
}
