// Package config reads the files an admin writes for hvi: the daemon's settings
// (hvid.toml), policies that domains may name (policies/NAME.toml) and what
// applies to a domain whose toolstack says nothing (domains/UUID.toml or
// domains/NAME.toml), all in TOML and all in one directory, /etc/hvi.
//
// It is strict. A key that is not known, a value of the wrong kind or out of
// bounds is an error that gives the file, the line and the column, the nearest
// word that is known and what to do; all errors of a file come together, as
// [policy.Error]s. A file that is there and cannot be used is never treated as
// if it were not.
//
// A policy decides whether a guest is watched. [Files] therefore believes only
// files that nobody but root can change, nor replace: itself and every
// directory above it belong to root and are not writable by others.
//
// Everything hvid.toml may hold stands in one table, [Keys]; the file that is
// installed ([Default]), its manual page and the parser all come from it.
//
// The package starts nothing and keeps nothing open. Its values may be copied,
// and used from several goroutines.
package config
