// Command docgen writes the documents of the packages that are made from code:
// the manual pages of file formats and hooks, and whose software is linked into
// the programs.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/config"
	"github.com/xen-hvi/hvi/packaging/manual"
)

const usage = `usage: docgen notice PROGRAM...      every licence of what is linked in
       docgen copyright PROGRAM...   the same as Debian's copyright file
       docgen man DIR VERSION EPOCH  the manual pages, compressed, below DIR
       docgen schema DIR             the JSON Schemas, in DIR
       docgen settings               the hvid.toml that is installed`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "settings" {
		_, err := os.Stdout.Write(config.Default())
		return err
	}
	if len(args) < 2 {
		return errors.New(usage)
	}
	w := bufio.NewWriter(os.Stdout)
	switch args[0] {
	case "notice", "copyright":
		all, err := linked(args[1:])
		if err != nil {
			return err
		}
		if args[0] == "notice" {
			writeNotice(w, all)
		} else if err := writeCopyright(w, all); err != nil {
			return err
		}
	case "schema":
		for name, s := range schemas() {
			b, err := writeSchema(s)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(args[1], name), b, 0o644); err != nil {
				return err
			}
		}
		return nil
	case "man":
		if len(args) != 4 {
			return errors.New(usage)
		}
		seconds, err := strconv.ParseInt(args[3], 10, 64)
		if err != nil {
			return fmt.Errorf("the time of the source is %q, not a number of seconds", args[3])
		}
		return writePages(args[1], manual.Build{Version: args[2], Date: time.Unix(seconds, 0)})
	default:
		return errors.New(usage)
	}
	return w.Flush()
}
