package main

import (
	"strings"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/packaging/manual"
)

// settingsPage is made from the table that hvid parses its settings with.
func settingsPage(build manual.Build) *manual.Page {
	p := manual.New("hvid.toml", 5, "settings of hvid", build.Version, build.Date)
	p.Heading("synopsis")
	p.Para("`/etc/hvi/hvid.toml`")
	p.Heading("description")
	for _, s := range config.Sections() {
		if s.Name != "" {
			p.Subheading("The table [" + s.Name + "]")
		}
		p.Para(s.Meaning)
		if s.Name == "" {
			p.Para(`The file is TOML. It must belong to root and be writable by nobody else, and so must every directory above it.
An error is reported with its line and column, and the nearest key that there is. Without the file everything is as by
default.

hvid.service lets hvid write below /run/hvi, /var/lib/hvi and /var/cache/hvi only. Who moves its directories or sockets
elsewhere adds them to the unit, with systemctl edit hvid and ReadWritePaths=.`)
			p.Heading("settings")
		}
		for _, k := range config.Keys() {
			if k.Table() != s.Name {
				continue
			}
			text := k.Meaning
			if k.Values != nil {
				text += " One of: `" + strings.Join(k.Values, "`, `") + "`."
			}
			p.Item("`"+strings.TrimPrefix(k.Name, s.Name+".")+"` = `"+k.Default+"` ("+k.Kind+")", text)
		}
	}
	p.Heading("examples")
	p.Para("Watch every domain that says nothing itself, and let Prometheus read metrics:")
	p.Code("[default]\nmode = \"observe\"\n\n[metrics]\nlisten = \"127.0.0.1:9617\"")
	p.SeeAlso("hvictl(1)", "hvi-policy(5)", "hvid(8)")
	return p
}
