package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	hvictl "github.com/xen-hvi/hvi/cmd/hvictl/command"
	hvid "github.com/xen-hvi/hvi/cmd/hvid/cli"
	"github.com/xen-hvi/hvi/packaging/manual"
)

// pages makes every manual page there is.
func pages(build manual.Build) []*manual.Page {
	all := manual.Commands(hvid.New(hvid.Actions{}), 8, build,
		[]string{"hvictl(1)", "hvi-hook(8)", "hvid.toml(5)", "hvi-policy(5)", "hvi-xl(5)", "hvi-libvirt(5)"},
		map[string]manual.Extra{"hvid": aboutDaemon})
	all = append(all, manual.Commands(hvictl.New(), 1, build,
		[]string{"hvid(8)", "hvi-policy(5)", "hvi-xl(5)", "hvi-libvirt(5)"},
		map[string]manual.Extra{"hvictl": aboutClient})...)
	return append(all, settingsPage(build), policyPage(build), xlPage(build), libvirtPage(build), hookPage(build))
}

// writePages writes the pages below dir as man(1) looks for them: compressed,
// by section.
func writePages(dir string, build manual.Build) error {
	for _, p := range pages(build) {
		section := filepath.Join(dir, fmt.Sprintf("man%d", p.Section))
		if err := os.MkdirAll(section, 0o755); err != nil {
			return err
		}
		// Without a name and a time, so that the same page is the same bytes.
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return err
		}
		_, err = z.Write(p.Bytes())
		if err := errors.Join(err, z.Close()); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(section, p.FileName()+".gz"), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// aboutDaemon is what hvid's page has beside its help.
func aboutDaemon(p *manual.Page) {
	p.Heading("signals")
	p.Item("`SIGTERM`, `SIGINT`", `Detach from every domain, undo everything in Xen, and end. The domains run
on without protection. Those that were protected are written down, so that hvictl(1) can say that hvid is
restarting, and are protected again by the next hvid.`)
	p.Item("`SIGABRT`", `Write every goroutine's stack and die; systemd sends it when hvid doesn't answer
its watchdog. What is left in Xen is undone by hvid-recover(8) or the next hvid.`)

	p.Heading("service")
	p.Para("The package's unit is `hvid.service`. It tells systemd(1) when it is ready and answers its watchdog. " +
		"It starts after xenstored and before xendomains and libvirt, so that guests that start with the host are protected " +
		"and guests that are saved when it stops are detached from first. Where the host is not the control domain of a Xen, the unit is passed over.")
	p.Code("systemctl status hvid\njournalctl -u hvid")

	p.Heading("files")
	for _, f := range [][2]string{
		{"/etc/hvi/hvid.toml", "Settings, see hvid.toml(5)."},
		{"/etc/hvi/policies/NAME.toml", "A policy that a domain may name, see hvi-policy(5)."},
		{"/etc/hvi/domains/UUID.toml", "What holds for a domain whose toolstack has no place for it, see hvi-policy(5)."},
		{"/etc/hvi/profiles/NAME.json", "Layouts of a kernel without type information of its own (BTF), in the symbol format of Volatility 3; .json.gz, too."},
		{"/run/hvi/hvid.sock", "The control socket: HTTP and JSON, for hvictl(1). Root may do everything; the group `hvi` may read status and alerts."},
		{"/run/hvi/ledger", "What is changed in Xen and not undone yet, for hvid-recover(8)."},
		{"/var/lib/hvi/events", "The security events, bounded in size by hvid itself."},
		{"/var/lib/hvi/dumps", "Memory dumps of domains that a guard has paused, where hvid.toml asks for them. hvid removes none."},
		{"/var/lib/hvi/domains", "What was declared for each domain, kept by UUID through reboot, save, restore and migration."},
		{"/var/cache/hvi", "What was read of guests' kernels, by build, and the key that it is protected with. It may be emptied at any time."},
	} {
		p.Item("`"+f[0]+"`", f[1])
	}
}

// aboutClient is what hvictl's page has beside its help.
func aboutClient(p *manual.Page) {
	root := hvictl.New()
	if topic, _, err := root.Find([]string{"exit-codes"}); err == nil && topic.Name() == "exit-codes" {
		p.Heading("exit status")
		text, _, _ := strings.Cut(topic.Long, "\nExample:")
		p.Text(text)
	}
	p.Heading("environment")
	p.Item("`NO_COLOR`", "If set and not empty, nothing is coloured.")
	p.Heading("files")
	p.Item("`/run/hvi/hvid.sock`", "The control socket of hvid(8). Who is in the group `hvi` can read status and alerts; what changes anything, or looks into a guest, takes root.")
}
