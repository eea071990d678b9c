package main

import (
	"net"
	"os"
)

// notify tells the service manager of a change, as sd_notify(3) does. Without
// a service manager it does nothing; a manager that can't be told is not worth
// an error, since it notices by its own time-out.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
