package main

import (
	"strconv"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/xlplugin"
)

// store is what is read of xenstore besides the coming and going of domains.
type store interface {
	Read(path string) (string, error)
}

// refreshNames looks up what the domains are called now: xl rename and a
// migration change a name without a word to anybody. The node belongs to the
// control domain; the guest can read it, and no more.
func refreshNames(e *engine.Engine, s store) {
	for _, st := range e.Status() {
		name, err := s.Read("/local/domain/" + strconv.Itoa(int(st.Info.ID)) + "/name")
		if err == nil && len(name) <= xlplugin.MaxName {
			e.Rename(st.Info.ID, name)
		}
	}
}
