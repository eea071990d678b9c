package xenstore

import (
	"io"
	"time"
)

// SetTimeout replaces the patience with xenstored.
func (c *Client) SetTimeout(d time.Duration) { c.timeout = d }

// NewClient makes a client of any connection.
func NewClient(conn io.ReadWriteCloser) *Client { return newClient(conn) }

// PendingEvents is how many events are kept.
const PendingEvents = pendingEvents

// OpenAt is Open with other places to look in.
func OpenAt(where ...string) (*Client, error) {
	old := places
	places = where
	defer func() { places = old }()
	return Open()
}
