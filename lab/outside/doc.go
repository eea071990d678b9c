// Package outside holds the scenarios that run on the host, outside of any
// machine: hvi on memory images that the lab took, and on a guest that runs
// ([specimen]).
//
// They use hvictl as people do, from its command line, and compare what it
// prints with what the guest's own kernel said. Nothing is taken from hvi to
// judge hvi but the form of its results and of the text in them. For the whole
// symbol table, which no command prints, and for a guest that runs, of which hvid
// asks Xen, they call what hvictl and hvid call: engine/inspect and
// engine/guest/linux.
package outside
