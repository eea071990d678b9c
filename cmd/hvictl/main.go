package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{
		out: os.Stdout, errOut: os.Stderr,
		colour: wantsColour(os.Stdout, os.Getenv),
		now:    time.Now, zone: time.Local,
		host: devNodes{dir: "/dev/xen"},
	}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// wantsColour reports whether w is a terminal whose user did not object; see
// no-color.org.
func wantsColour(w io.Writer, env func(string) string) bool {
	f, ok := w.(*os.File)
	if !ok || env("NO_COLOR") != "" || env("TERM") == "dumb" || env("TERM") == "" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
