package outside

import (
	"github.com/xen-hvi/hvi/lab/image"
	"github.com/xen-hvi/hvi/lab/machine"
	"github.com/xen-hvi/hvi/lab/scenario"
	"github.com/xen-hvi/hvi/lab/specimen"
)

// Env is what the scenarios work with. Its builder may be nil as long as none
// is run.
type Env struct {
	Builder *image.Builder
	// place is where a scenario makes its specimens, see keepPlace.
	place *machine.Place
}

// keepPlace returns an Env whose specimens are made in one place, which is kept from
// the first that is made until it is given back.
func (e Env) keepPlace() (kept Env, giveBack func()) {
	e.place = &machine.Place{}
	return e, e.place.Close
}

// Scenarios returns them all, sorted by name. Their emulator is
// [scenario.Host].
func Scenarios(env Env) []scenario.Scenario {
	all := []scenario.Scenario{
		linuxFormats(env),
		linuxHidden(env),
		linuxHiddenQuick(env),
		linuxLive(env),
		linuxLiveQuick(env),
		linuxMatrix(env),
		linuxMatrixQuick(env),
		linuxVolatility(env),
	}
	for i := range all {
		all[i].Emulator = scenario.Host
	}
	return all
}

// specimen makes one and tells how the guest is doing.
func (e Env) specimen(t *scenario.T, v specimen.Variant) (specimen.Specimen, error) {
	m := specimen.Maker{Builder: e.Builder, Place: e.place, Show: func(line string) { t.Logf("%v| %s", v, line) }}
	return m.Make(t.Context(), v)
}
