package linux

import "testing"

// TestImagesSealed finds what each real kernel seals at the end of its boot.
func TestImagesSealed(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			g := img.tampered(t)
			data, err := g.k.ROData()
			if err != nil {
				t.Fatal(err)
			}
			table, err := g.k.ExceptionTable()
			if err != nil || table.Start < data.Start || table.End > data.End {
				t.Errorf("exception table %v in %v, %v", table, data, err)
			}
			calls, err := g.k.SyscallTables()
			if err != nil || len(calls) == 0 || !data.Contains(calls[0].Start) || calls[0].End-calls[0].Start < 8*400 {
				t.Errorf("tables of system calls %v, %v", calls, err)
			}
			// The vDSO is an ELF file.
			images, err := g.k.VDSO()
			if err != nil || len(images) == 0 {
				t.Errorf("vDSO %v, %v", images, err)
			}
			for _, r := range images {
				if magic, err := g.as.ReadUint32(r.Start); err != nil || magic != 0x464c457f {
					t.Errorf("vDSO at %v begins with %#x, %v", r.Start, magic, err)
				}
			}
			idt, err := g.k.InterruptTable()
			if err != nil {
				t.Fatal(err)
			}
			gate, err := g.as.ReadUint64(idt.Start + 14*gateSize) // a page fault's
			if err != nil || gate>>47&1 == 0 {
				t.Errorf("idt_table at %v has gate %#x, %v", idt.Start, gate, err)
			}
			modules, err := g.SealedModuleFrames()
			if err != nil || len(modules) == 0 {
				t.Errorf("%d frames of modules, %v", len(modules), err)
			}
			listed, err := g.Modules()
			if err != nil {
				t.Fatal(err)
			}
			pages := 0
			for _, m := range listed.Items {
				for _, a := range m.Regions {
					if a.Kind == regionText || a.Kind == regionROData || a.Kind == regionROAfterInit {
						pages += int(a.Size+0xfff) >> 12
					}
				}
			}
			if len(modules) != pages {
				t.Errorf("%d frames of modules, want %d", len(modules), pages)
			}
			frames, err := g.k.Frames(data)
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(0)
			for _, f := range frames {
				n += f.N
			}
			if want := uint64(data.End-data.Start) >> 12; n != want {
				t.Errorf("%d frames of read-only data, want %d", n, want)
			}
		})
	}
}
