package main

import (
	"net"
	"os"
	"strconv"
	"time"
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

// watchdogPeriod is how often the service manager wants to hear that we live,
// as sd_watchdog_enabled(3) tells it, halved for safety; 0 if it does not ask.
func watchdogPeriod(getenv func(string) string, pid int) time.Duration {
	if p := getenv("WATCHDOG_PID"); p != "" && p != strconv.Itoa(pid) {
		return 0
	}
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond / 2
}
