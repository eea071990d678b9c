package config

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/xen-hvi/hvi/engine/policy"
)

// Limits of a file.
const (
	// MaxFileSize is the largest file that is read, in bytes. A real one is a
	// hundredth of it.
	MaxFileSize = 256 << 10
	// maxSettings bounds the settings in a file, and maxErrors what is said
	// about one.
	maxSettings = 4096
	maxErrors   = 20
)

// kind is what a TOML value is.
type kind uint8

const (
	kindOther kind = iota // a float, a table where a value belongs
	kindText
	kindNumber
	kindSwitch
	kindList
	kindDate // with or without a time
)

// String names the kind for people, with its article.
func (k kind) String() string {
	switch k {
	case kindText:
		return "a string"
	case kindNumber:
		return "a whole number"
	case kindSwitch:
		return "true or false"
	case kindDate:
		return "a date"
	case kindList:
		return "a list"
	default:
		return "another kind of value"
	}
}

// value is a value in a document.
type value struct {
	kind   kind
	text   string // of a string or a date, or the word of a switch
	number int64
	list   []value
	at     policy.Origin
}

// setting is one key with its value.
type setting struct {
	path []string // the table's and its own
	at   policy.Origin
	value
}

// name is the key as people write it.
func (s setting) name() string { return dotted(s.path) }

func dotted(path []string) string {
	parts := make([]string, len(path))
	for i, p := range path {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			p = strconv.QuoteToASCII(p)
		}
		parts[i] = p
	}
	return strings.Join(parts, ".")
}

// document is a TOML file taken apart: its settings in their order. Tables that
// hold none are listed too, so that a misspelt one is found.
type document struct {
	source   string
	settings []setting
	tables   []setting
	// exceptions and views are the tables [[exception]] and [[view]], which may stand
	// there more than once.
	exceptions, views []arrayTable

	// inArrays counts the settings in them.
	inArrays int

	lines []int // offsets of line starts
	p     unstable.Parser
	errs  []error
}

// arrayTable is one table [[exception]] or [[view]] with its settings.
type arrayTable struct {
	at       policy.Origin
	settings []setting
}

// parse takes a file apart. source names it in errors. What it returns is
// complete only if there is no error.
func parse(source string, data []byte) (*document, error) {
	d := &document{source: source, lines: []int{0}}
	if len(data) > MaxFileSize {
		return nil, &policy.Error{Origin: policy.Origin{Source: source}, What: "file", Reason: fmt.Sprintf("is larger than %d bytes", MaxFileSize)}
	}
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	// The decoder knows what TOML forbids (a key set twice, a table opened
	// twice); the parser tells where things are.
	var whole map[string]any
	if err := toml.Unmarshal(data, &whole); err != nil {
		return nil, d.syntax(err)
	}
	var table []string
	var in *[]arrayTable // whose last one the settings belong to
	d.p.Reset(data)
	for d.p.NextExpression() {
		e := d.p.Expression()
		switch e.Kind {
		case unstable.Table:
			var at policy.Origin
			table, at = d.path(nil, e)
			d.tables = append(d.tables, setting{path: table, at: at})
			in = nil
		case unstable.ArrayTable:
			var at policy.Origin
			table, at = d.path(nil, e)
			most := 0
			if in, most = d.array(table); in != nil {
				if len(*in) == most {
					d.fail(&policy.Error{Origin: at, What: "file", Reason: fmt.Sprintf("has more than %d tables [[%s]]", most, table[0])})
					*in = (*in)[:most-1] // nobody reads them
				}
				*in = append(*in, arrayTable{at: at})
				continue
			}
			d.fail(&policy.Error{Origin: at, What: "table", Value: dotted(table), Reason: "has double brackets, which nothing here takes", Hint: "write [" + dotted(table) + "]"})
		case unstable.KeyValue:
			if in != nil {
				d.arraySetting(&(*in)[len(*in)-1], e)
				continue
			}
			d.assignment(table, e)
		}
	}
	if err := d.p.Error(); err != nil {
		return nil, d.syntax(err)
	}
	return d, errors.Join(d.errs...)
}

// syntax turns an error of the TOML library into one of ours.
func (d *document) syntax(err error) error {
	e := &policy.Error{Origin: policy.Origin{Source: d.source}, What: "file", Reason: "is not TOML: " + strings.TrimPrefix(err.Error(), "toml: ")}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		e.Origin.Line, e.Origin.Column = de.Position()
	}
	if i := strings.IndexByte(e.Reason, '\n'); i >= 0 {
		e.Reason = e.Reason[:i]
	}
	// The library may repeat a piece of the file.
	if q := strconv.QuoteToASCII(e.Reason); q != `"`+e.Reason+`"` {
		e.Reason = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	}
	return e
}

func (d *document) fail(e *policy.Error) {
	if len(d.errs) < maxErrors {
		d.errs = append(d.errs, e)
	}
}

func (d *document) place(r unstable.Range) policy.Origin {
	offset := int(r.Offset)
	n := sort.SearchInts(d.lines, offset+1)
	return policy.Origin{Source: d.source, Line: n, Column: offset - d.lines[n-1] + 1}
}

// path reads the key of a table or an assignment, below that of its table.
func (d *document) path(table []string, n *unstable.Node) ([]string, policy.Origin) {
	path := append([]string(nil), table...)
	var at policy.Origin
	for it := n.Key(); it.Next(); {
		k := it.Node()
		if at.IsZero() {
			at = d.place(k.Raw)
		}
		path = append(path, string(k.Data))
	}
	return path, at
}

func (d *document) assignment(table []string, n *unstable.Node) {
	path, at := d.path(table, n)
	v := n.Value()
	if v.Kind == unstable.InlineTable {
		d.tables = append(d.tables, setting{path: path, at: at})
		for it := v.Children(); it.Next(); {
			d.assignment(path, it.Node())
		}
		return
	}
	if len(d.settings) == maxSettings {
		d.fail(&policy.Error{Origin: at, What: "file", Reason: fmt.Sprintf("has more than %d settings", maxSettings)})
		return
	}
	d.settings = append(d.settings, setting{path: path, at: at, value: d.value(v, at)})
}

// array returns the tables of that name that may stand there more than once, and how
// many there may be; nil for another name. Of views one more is read than a policy may
// have, which is an error that says why.
func (d *document) array(table []string) (*[]arrayTable, int) {
	switch {
	case slices.Equal(table, []string{wordException}):
		return &d.exceptions, policy.MaxExceptions
	case slices.Equal(table, []string{wordView}):
		return &d.views, policy.MaxViews + 1
	}
	return nil, 0
}

// arraySetting is an assignment in one of such tables.
func (d *document) arraySetting(t *arrayTable, n *unstable.Node) {
	if d.inArrays++; d.inArrays > maxSettings {
		d.fail(&policy.Error{Origin: t.at, What: "file", Reason: fmt.Sprintf("has more than %d settings", maxSettings)})
		return
	}
	before := len(d.settings)
	d.assignment(nil, n)
	t.settings = append(t.settings, d.settings[before:]...)
	d.settings = d.settings[:before]
}

func (d *document) value(n *unstable.Node, key policy.Origin) value {
	v := value{at: key}
	if n.Raw.Length > 0 {
		v.at = d.place(n.Raw)
	}
	switch n.Kind {
	case unstable.String:
		v.kind, v.text = kindText, string(n.Data)
	case unstable.Bool:
		v.kind, v.text = kindSwitch, string(n.Data)
	case unstable.Integer:
		number, err := strconv.ParseInt(strings.ReplaceAll(string(n.Data), "_", ""), 0, 64)
		if err != nil {
			break
		}
		v.kind, v.number = kindNumber, number
	case unstable.LocalDate, unstable.DateTime:
		v.kind, v.text = kindDate, string(n.Data)
	case unstable.Array:
		v.kind = kindList
		for it := n.Children(); it.Next(); {
			v.list = append(v.list, d.value(it.Node(), v.at))
		}
	}
	return v
}
