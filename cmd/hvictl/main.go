package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/xen-hvi/hvi/cmd/hvictl/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
