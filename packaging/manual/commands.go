package manual

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Build is what every page says of its origin.
type Build struct {
	Version string
	Date    time.Time
}

// Extra is what a command's help doesn't say and its page does.
type Extra func(p *Page)

// Commands makes the pages of a command and of everything below it: "hvictl",
// "hvictl-status". also are pages of other things that each refers to; extra
// adds sections to the page it is named after, before its references.
func Commands(root *cobra.Command, section int, build Build, also []string, extra map[string]Extra) []*Page {
	root.InitDefaultHelpCmd()
	var pages []*Page
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		p := command(c, section, build)
		if more := extra[p.Name]; more != nil {
			more(p)
		}
		p.SeeAlso(append(family(c, section), also...)...)
		pages = append(pages, p)
		for _, sub := range c.Commands() {
			if documented(sub) {
				walk(sub)
			}
		}
	}
	walk(root)
	return pages
}

// documented reports whether a command has a page: cobra's own for help and
// completion are described by the page of their parent.
func documented(c *cobra.Command) bool {
	return !c.Hidden && c.Deprecated == "" && c.Name() != "help" && c.Name() != "completion"
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// family is the page above and those beside or below.
func family(c *cobra.Command, section int) []string {
	var names []string
	if c.HasParent() {
		names = append(names, pageName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if documented(sub) {
			names = append(names, pageName(sub))
		}
	}
	slices.Sort(names)
	for i := range names {
		names[i] += fmt.Sprintf("(%d)", section)
	}
	return names
}

func command(c *cobra.Command, section int, build Build) *Page {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	p := New(pageName(c), section, purpose(c.Short), build.Version, build.Date)
	if c.Runnable() {
		p.Heading("synopsis")
		p.synopsis(c)
	}
	p.Heading("description")
	long := c.Long
	if long == "" {
		long = strings.TrimSuffix(c.Short, ".") + "."
	}
	p.Text(long)
	if subs := c.Commands(); slices.ContainsFunc(subs, documented) {
		p.Heading("commands")
		for _, sub := range subs {
			if !documented(sub) {
				continue
			}
			p.Item("`"+sub.Name()+"`", sentence(sub.Short)+" See "+pageName(sub)+fmt.Sprintf("(%d).", section))
		}
	}
	if own := c.NonInheritedFlags(); own.HasAvailableFlags() {
		p.Heading("options")
		p.flags(own)
	}
	if all := c.InheritedFlags(); all.HasAvailableFlags() {
		p.Heading("options of every command")
		p.flags(all)
	}
	if c.Example != "" {
		p.Heading("examples")
		p.Code(unindent(strings.Split(strings.TrimRight(c.Example, "\n"), "\n")))
	}
	return p
}

// synopsis writes how a command is called; what help calls something with a
// capital letter or in brackets stays as it is.
func (p *Page) synopsis(c *cobra.Command) {
	words := strings.Fields(c.UseLine())
	name := len(strings.Fields(c.CommandPath()))
	line := "`" + strings.Join(words[:name], " ") + "`"
	if rest := strings.Join(words[name:], " "); rest != "" {
		line += " " + rest
	}
	p.b.WriteString(protect(inline(line)) + "\n")
	if c.HasSubCommands() && !c.HasParent() {
		p.b.WriteString(".br\n")
		p.b.WriteString(protect(inline("`"+c.CommandPath()+"` <command> [flags] [<argument>...]")) + "\n")
	}
}

func (p *Page) flags(set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		term := "`--" + f.Name + "`"
		if f.Shorthand != "" && f.ShorthandDeprecated == "" {
			term = "`-" + f.Shorthand + "`, " + term
		}
		if value != "" {
			term += " <" + value + ">"
		}
		text := sentence(plainMarks.Replace(usage))
		if def := f.DefValue; def != "" && def != "false" && def != "[]" && def != "0" && !strings.Contains(usage, "default") {
			text += " Default: " + plainMarks.Replace(def) + "."
		}
		p.Item(term, text)
	})
}

// purpose is a command's short text as whatis(1) has them.
func purpose(s string) string {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 1 && unicode.IsUpper(rune(s[0])) && !unicode.IsUpper(rune(s[1])) {
		s = strings.ToLower(s[:1]) + s[1:]
	}
	return s
}

// sentence makes a short text one.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return s
	}
	if !strings.HasPrefix(s, "hvi") { // names stay as they are
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if strings.ContainsAny(s[len(s)-1:], ".!?") {
		return s
	}
	return s + "."
}
