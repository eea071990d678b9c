// Package unixsocket makes the unix sockets by which programs reach hvid: the
// control socket, and that of the metrics.
//
// A socket appears under its name only when it has its final rights. One that
// nobody serves is replaced; one that somebody does, and a file of another kind,
// are left alone. Nobody but its owner can put another in the place of a socket
// made here, since a directory that everybody can write to is refused.
//
// Errors are a typed [*Error] that says what went wrong; what to do about it the
// caller knows.
package unixsocket
