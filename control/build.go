package control

import "runtime/debug"

// buildVersion is set when a release is linked:
//
//	-ldflags "-X github.com/xen-hvi/hvi/control.buildVersion=1.2.3"
var buildVersion string

// Build describes the binary that runs.
type Build struct {
	// Version is the release, or what the Go toolchain knows of the checkout,
	// or "devel".
	Version string `json:"version"`
	// Revision is the commit, with "+dirty" where files differed from it.
	Revision string `json:"revision,omitempty"`
	// Go is the version of the toolchain.
	Go string `json:"go"`
}

// String returns "1.2.3 (abcdef), go1.26".
func (b Build) String() string {
	s := b.Version
	if b.Revision != "" {
		s += " (" + b.Revision + ")"
	}
	if b.Go != "" {
		s += ", " + b.Go
	}
	return s
}

// ThisBuild describes the binary that calls it.
func ThisBuild() Build {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		bi = new(debug.BuildInfo)
	}
	return buildOf(buildVersion, bi)
}

func buildOf(linked string, bi *debug.BuildInfo) Build {
	b := Build{Version: linked, Go: bi.GoVersion}
	if b.Version == "" {
		b.Version = bi.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	dirty := false
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && b.Revision != "" {
		b.Revision += "+dirty"
	}
	return b
}
