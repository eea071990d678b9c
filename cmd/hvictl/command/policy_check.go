package command

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/libvirt/metadata"
	"github.com/xen-hvi/hvi/xlplugin"
)

// fileKind is a kind of file that a policy may be written in.
type fileKind string

const (
	kindXL      fileKind = "xl"
	kindLibvirt fileKind = "libvirt"
	kindPolicy  fileKind = "policy"
	kindDomain  fileKind = "domain"
	kindDaemon  fileKind = "hvid"

	kindExceptions fileKind = "exceptions"
)

var fileKinds = []string{string(kindXL), string(kindLibvirt), string(kindPolicy), string(kindDomain), string(kindDaemon), string(kindExceptions)}

func (a *app) policyCheckCommand() *cobra.Command {
	var as, dir string
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Check what files declare, without hvid",
		Long: `Read files as hvid would, and say what they declare and what is wrong with them. It
needs neither hvid nor Xen. A file of - is standard input.

The kind of a file is seen from its name and content: a libvirt domain's XML, a
file of /etc/hvi (hvid.toml, exceptions.toml, policies/NAME.toml,
domains/NAME.toml), or else an xl config. --as says it where that is wrong.

The exit code is 8 if anything is wrong with a file; warnings leave it at 0.`,
		Example: `  hvictl policy check /etc/xen/*.cfg
  virsh dumpxml web1 | hvictl policy check -
  hvictl policy check /etc/hvi/hvid.toml /etc/hvi/policies/*.toml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, "hvictl policy check needs a file")
			}
			if as != "" && !slices.Contains(fileKinds, as) {
				return usage(cmd, policy.UnknownWord("kind of file", as, fileKinds, policy.Origin{}).Error())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			files := &config.Files{Dir: dir}
			var all []checked
			wrong := 0
			for _, path := range args {
				c := a.checkFile(path, fileKind(as), files)
				if len(c.Errors) > 0 {
					wrong++
				}
				all = append(all, c)
			}
			if a.format == formatJSON {
				if err := a.json(all); err != nil {
					return err
				}
			} else {
				for i, c := range all {
					if i > 0 {
						fmt.Fprintln(a.out)
					}
					a.checkedFile(c)
				}
			}
			if wrong > 0 {
				return &control.Problem{Code: codeWrongFile, What: fmt.Sprintf("%d of %s wrong", wrong, count(len(all), "file is", "files are"))}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "what the files are: "+strings.Join(fileKinds, ", "))
	cmd.Flags().StringVar(&dir, "dir", config.DefaultDir, "where the policies are that files may name")
	// The flags exist: it can't fail.
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions(fileKinds, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// checked is what a file declares and what is wrong with it.
type checked struct {
	File printable.Text `json:"file"`
	Kind fileKind       `json:"kind"`
	// Name and UUID are the domain's, where the file says so, or the policy's.
	Name printable.Text `json:"name,omitempty"`
	UUID string         `json:"uuid,omitempty"`
	// Declares reports whether it declares anything for a domain; Policy holds
	// then.
	Declares bool                  `json:"declares"`
	Policy   *control.PolicyReport `json:"policy,omitempty"`
	// Exceptions are what it permits.
	Exceptions []policy.Exception `json:"exceptions,omitempty"`
	Warnings   []string           `json:"warnings"`
	Errors     []string           `json:"errors"`
}

// maxChecked is the longest file that is read: the longest of any kind.
const maxChecked = metadata.MaxXML

func (a *app) checkFile(path string, kind fileKind, files *config.Files) checked {
	source := path
	c := checked{File: printable.Escape(path), Kind: kind, Warnings: []string{}, Errors: []string{}}
	var data []byte
	var err error
	if path == "-" {
		source = "standard input"
		c.File = printable.Text(source)
		data, err = io.ReadAll(io.LimitReader(a.in, maxChecked+1))
		if err == nil && len(data) > maxChecked {
			err = fmt.Errorf("standard input is longer than %d bytes", maxChecked)
		}
	} else {
		data, err = readRegular(path, maxChecked)
	}
	if err != nil {
		c.fail(err)
		return c
	}
	if c.Kind == "" {
		c.Kind = kindOf(path, data)
	}
	var spec policy.Spec
	switch c.Kind {
	case kindXL:
		var cfg *xlplugin.Config
		if cfg, err = xlplugin.Parse(source, data); err == nil {
			var d xlplugin.Declared
			d, err = xlplugin.FromConfig(cfg, files)
			c.Name, spec = printable.Escape(d.Name), d.Spec
			if d.HasUUID {
				c.UUID = d.UUID.String()
			}
			for _, w := range append(cfg.Warnings, d.Warnings...) {
				c.Warnings = append(c.Warnings, printable.Text(w.String()).String())
			}
		}
	case kindLibvirt:
		var d metadata.Domain
		d, err = metadata.ParseDomain(source, data)
		c.Name, c.UUID = printable.Escape(d.Name), d.UUID
		if err == nil && d.Element != nil {
			spec, err = d.Element.Spec(files)
		}
		if d.Type != "" && d.Type != "xen" {
			c.Warnings = append(c.Warnings, "this is a domain of type "+policy.Quote(d.Type)+"; hvi protects Xen's")
		}
	case kindDomain:
		spec, err = config.ParseDomain(source, data, files)
		c.Name = printable.Escape(baseName(path))
	case kindDaemon:
		var conf config.Config
		if conf, err = config.Parse(source, data, files); err == nil {
			spec = conf.Default
		}
	case kindExceptions:
		c.Exceptions, err = config.ParseExceptions(source, data)
	case kindPolicy:
		var named policy.Named
		named, err = config.ParsePolicy(baseName(path), source, data)
		c.Name = printable.Escape(baseName(path))
		if err == nil {
			// What it comes to where a domain enforces it.
			r := new(control.PolicyReport)
			at := policy.Origin{Source: source}
			r.SetSpec(policy.Spec{
				Mode: policy.ModeEnforce, Preset: named.Name, Named: &named, RequireAttach: named.RequireAttach,
				Origins: policy.Origins{Mode: policy.Origin{Source: "a domain that names it"}, Preset: at, RequireAttach: named.RequireAttachAt},
			})
			c.Policy, c.Exceptions = r, named.Exceptions
		}
	}
	if err != nil {
		c.fail(err)
		return c
	}
	if spec.Declared() {
		c.Declares, c.Policy = true, new(control.PolicyReport)
		c.Policy.SetSpec(spec)
	}
	if c.Policy != nil {
		c.Policy.ID, c.Policy.Name, c.Policy.UUID, c.Policy.Source = control.NoDomID, c.Name, c.UUID, c.File.String()
		c.Policy.Warnings = []string{}
	}
	return c
}

// fail adds each error that is joined in err.
func (c *checked) fail(err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			c.fail(e)
		}
		return
	}
	c.Errors = append(c.Errors, printable.Text(err.Error()).String())
}

// baseName is the file's name without its directory and suffix.
func baseName(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// kindOf guesses what a file is.
func kindOf(path string, data []byte) fileKind {
	switch head := bytes.TrimLeft(bytes.TrimPrefix(data, []byte("\ufeff")), " \t\r\n"); {
	case len(head) > 0 && head[0] == '<', strings.EqualFold(filepath.Ext(path), ".xml"):
		return kindLibvirt
	case !strings.EqualFold(filepath.Ext(path), ".toml"):
		return kindXL
	}
	dir := ""
	if abs, err := filepath.Abs(path); err == nil {
		dir = filepath.Base(filepath.Dir(abs))
	}
	switch {
	case filepath.Base(path) == config.DaemonFile:
		return kindDaemon
	case filepath.Base(path) == config.ExceptionsFile:
		return kindExceptions
	case dir == config.PoliciesDir:
		return kindPolicy
	case dir == config.DomainsDir:
		return kindDomain
	}
	// Of the two, only a domain's file has a mode.
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("mode")); ok && bytes.HasPrefix(bytes.TrimSpace(rest), []byte("=")) {
			return kindDomain
		}
	}
	return kindPolicy
}

// kindWords name a kind for people.
var kindWords = map[fileKind]string{
	kindXL: "xl config", kindLibvirt: "libvirt domain", kindPolicy: "policy", kindDomain: "file for a domain", kindDaemon: "settings of hvid",
	kindExceptions: "exceptions",
}

func (a *app) checkedFile(c checked) {
	what := kindWords[c.Kind]
	if c.Name != "" {
		what += " " + c.Name.Quoted()
	}
	verdict := cell{"ok", green}
	switch {
	case len(c.Errors) > 0:
		verdict = cell{count(len(c.Errors), "error", "errors"), red}
	case !c.Declares && c.Kind != kindPolicy && c.Kind != kindExceptions:
		verdict = cell{"ok, and declares nothing", plain}
	}
	if what != "" {
		what += ": "
	}
	fmt.Fprintf(a.out, "%s: %s%s\n", c.File, what, a.paint(verdict))
	if c.Policy != nil {
		a.policyTable(*c.Policy)
	}
	for _, e := range c.Exceptions {
		if c.Policy == nil {
			fmt.Fprintf(a.out, "  permits %s\n", safe(e.String()))
		}
		if e.Expired(a.now()) {
			fmt.Fprintf(a.out, "  %s\n", a.paint(cell{"warning: the exception at " + safe(e.Origin.String()) + " has ended", yellow}))
		}
	}
	for _, e := range c.Errors {
		fmt.Fprintf(a.out, "  %s\n", a.paint(cell{"error: " + safe(e), red}))
	}
	for _, w := range c.Warnings {
		fmt.Fprintf(a.out, "  %s\n", a.paint(cell{"warning: " + safe(w), yellow}))
	}
}
