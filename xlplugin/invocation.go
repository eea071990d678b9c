package xlplugin

import "strings"

// invocation is what a command line of xl asks for.
type invocation struct {
	// restore and receive tell `xl restore` and `xl migrate-receive` from
	// `xl create`.
	restore, receive bool
	// config is the config file as it was written, or "" if none was given.
	config string
	// extra are the assignments after it.
	extra []string
}

// parseInvocation understands a command line the way xl 4.11 to 4.22 does
// (tools/xl/xl.c, xl_vmcontrol.c, xl_saverestore.c), and reports false for one
// that creates no domain: another command, help, a dry run, or
// options xl refuses. argv[0] is the program.
//
// Whether options may follow other arguments depends on the C library: xl's
// first call of getopt forbids it, and in glibc that stays so for the
// command's own options; in musl it does not. xl would have ended if it had not
// understood its arguments, so the second reading counts where the first makes
// no sense.
func parseInvocation(argv []string) (invocation, bool) {
	if len(argv) == 0 {
		return invocation{}, false
	}
	global := getopt{args: argv[1:], short: "vftTN", stopEarly: true}
	for {
		opt, _, more := global.next()
		if !more {
			break
		}
		if opt == '?' || opt == 'N' { // -N is a dry run
			return invocation{}, false
		}
	}
	rest := global.rest()
	if len(rest) == 0 {
		return invocation{}, false
	}
	// xl takes any prefix of a command that fits no other.
	var parse func(args []string, stopEarly bool) (invocation, bool)
	switch cmd := rest[0]; {
	case len(cmd) >= 2 && strings.HasPrefix("create", cmd):
		parse = parseCreate
	case len(cmd) >= 3 && strings.HasPrefix("restore", cmd):
		parse = parseRestore
	case len(cmd) > len("migrate-") && strings.HasPrefix("migrate-receive", cmd):
		parse = parseReceive
	default:
		return invocation{}, false
	}
	if inv, ok := parse(rest[1:], true); ok {
		return inv, true
	}
	return parse(rest[1:], false)
}

var createLong = []longOption{
	{"defconfig", true, 'f'},
	{"dryrun", false, 'n'},
	{"ignore-global-affinity-masks", false, 'i'},
	{"quiet", false, 'q'},
	{"vncviewer", false, 'V'},
	{"vncviewer-autopass", false, 'A'},
	{"help", false, 'h'},
}

func parseCreate(args []string, stopEarly bool) (invocation, bool) {
	var inv invocation
	given := false // a config, if only by an empty name
	// The config may always stand before the options.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") && !strings.Contains(args[0], "=") {
		inv.config, given, args = args[0], true, args[1:]
	}
	opts := getopt{args: args, short: "hAFVcdef:inpq", long: createLong, stopEarly: stopEarly}
	for {
		opt, value, more := opts.next()
		if !more {
			break
		}
		switch opt {
		case '?', 'h', 'n':
			return invocation{}, false
		case 'f':
			inv.config, given = value, true
		}
	}
	for _, a := range opts.rest() {
		switch {
		case strings.Contains(a, "="):
			inv.extra = append(inv.extra, a)
		case !given:
			inv.config, given = a, true
		default:
			return invocation{}, false
		}
	}
	return inv, inv.config != ""
}

var restoreLong = []longOption{
	{"vncviewer", false, 'V'},
	{"vncviewer-autopass", false, 'A'},
	{"help", false, 'h'},
}

func parseRestore(args []string, stopEarly bool) (invocation, bool) {
	opts := getopt{args: args, short: "hFcpdeVAi", long: restoreLong, stopEarly: stopEarly}
	for {
		opt, _, more := opts.next()
		if !more {
			break
		}
		if opt == '?' || opt == 'h' {
			return invocation{}, false
		}
	}
	switch rest := opts.rest(); len(rest) {
	case 1:
		return invocation{restore: true}, true
	case 2:
		return invocation{restore: true, config: rest[0]}, true
	default:
		return invocation{}, false
	}
}

var receiveLong = []longOption{
	{"colo", false, 'c'},
	{"coloft-script", true, 's'},
	{"userspace-colo-proxy", false, 'u'},
	{"help", false, 'h'},
}

func parseReceive(args []string, stopEarly bool) (invocation, bool) {
	opts := getopt{args: args, short: "hFedrp", long: receiveLong, stopEarly: stopEarly}
	for {
		opt, _, more := opts.next()
		if !more {
			break
		}
		if opt == '?' || opt == 'h' {
			return invocation{}, false
		}
	}
	return invocation{receive: true}, len(opts.rest()) == 0
}

type longOption struct {
	name     string
	hasValue bool
	short    byte
}

// getopt walks over arguments as getopt_long of a C library does: clustered
// short options, values in the same or the next argument, long options by any
// unambiguous prefix, "--" as the end, and options after other arguments
// unless stopEarly.
type getopt struct {
	args      []string
	short     string // option letters; one with a ":" behind it takes a value
	long      []longOption
	stopEarly bool

	cluster string   // letters left in the current argument
	others  []string // arguments that are no options
}

// next returns the next option, or '?' for one that is not known or is used
// wrongly, and whether there was one.
func (g *getopt) next() (opt byte, value string, more bool) {
	for g.cluster == "" {
		if len(g.args) == 0 {
			return 0, "", false
		}
		a := g.args[0]
		switch {
		case a == "--":
			g.others = append(g.others, g.args[1:]...)
			g.args = nil
			return 0, "", false
		case len(a) > 2 && a[:2] == "--" && g.long != nil:
			g.args = g.args[1:]
			opt, value = g.longOption(a[2:])
			return opt, value, true
		case len(a) > 1 && a[0] == '-':
			g.args = g.args[1:]
			g.cluster = a[1:]
		case g.stopEarly:
			g.others = append(g.others, g.args...)
			g.args = nil
			return 0, "", false
		default:
			g.others = append(g.others, a)
			g.args = g.args[1:]
		}
	}
	opt, g.cluster = g.cluster[0], g.cluster[1:]
	i := strings.IndexByte(g.short, opt)
	if i < 0 || opt == ':' {
		return '?', "", true
	}
	if i+1 == len(g.short) || g.short[i+1] != ':' {
		return opt, "", true
	}
	if g.cluster != "" {
		value, g.cluster = g.cluster, ""
		return opt, value, true
	}
	if len(g.args) == 0 {
		return '?', "", true
	}
	value, g.args = g.args[0], g.args[1:]
	return opt, value, true
}

func (g *getopt) longOption(a string) (byte, string) {
	name, value, valued := strings.Cut(a, "=")
	var found *longOption
	for i := range g.long {
		o := &g.long[i]
		if o.name == name {
			found = o
			break
		}
		if strings.HasPrefix(o.name, name) {
			if found != nil {
				// An exact name may still come; two prefixes never fit.
				if !containsName(g.long[i:], name) {
					return '?', ""
				}
				continue
			}
			found = o
		}
	}
	switch {
	case found == nil, valued && !found.hasValue:
		return '?', ""
	case found.hasValue && !valued:
		if len(g.args) == 0 {
			return '?', ""
		}
		value, g.args = g.args[0], g.args[1:]
	}
	return found.short, value
}

func containsName(opts []longOption, name string) bool {
	for _, o := range opts {
		if o.name == name {
			return true
		}
	}
	return false
}

// rest returns the arguments that are no options, in their order.
func (g *getopt) rest() []string { return append(g.others, g.args...) }
