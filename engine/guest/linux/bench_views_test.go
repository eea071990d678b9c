package linux

import "testing"

// BenchmarkProcessList lists the processes of a real guest: their numbers and
// names, and all there is to say of them. Like BenchmarkIdentify it reports the
// processor's time, too.
func BenchmarkProcessList(b *testing.B) {
	for _, img := range testImages(b) {
		k, err := Identify(img.memory(b), img.Regs[0])
		if err != nil {
			b.Fatal(err)
		}
		r := k.NewReader(img.Regs)
		b.Run("names/"+img.name(), func(b *testing.B) {
			b.ReportAllocs()
			n, begin := 0, processorTime()
			for b.Loop() {
				n = 0
				if err := r.EachTask(func(*Task) { n++ }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime()-begin)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(n), "processes")
		})
		b.Run("everything/"+img.name(), func(b *testing.B) {
			b.ReportAllocs()
			n, begin := 0, processorTime()
			for b.Loop() {
				list, err := r.Processes()
				if n = len(list.Items); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime()-begin)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(n), "processes")
		})
	}
}

// BenchmarkImageWatch takes a real kernel's code for right, and compares all of it
// once.
func BenchmarkImageWatch(b *testing.B) {
	for _, img := range testImages(b) {
		k, err := Identify(img.memory(b), img.Regs[0])
		if err != nil {
			b.Fatal(err)
		}
		r := k.NewReader(img.Regs)
		var w *ImageWatch
		b.Run("watch/"+img.name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if w, err = r.WatchText(Taking{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("compare/"+img.name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for page := range w.Pages() {
					if found, err := w.Compare(r, page); err != nil || len(found) > 0 {
						b.Fatal(found, err)
					}
				}
			}
			b.ReportMetric(float64(w.Pages()), "pages")
		})
	}
}
