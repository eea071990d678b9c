// Package command is hvictl: its commands, and how they write for people and
// programs. It talks to hvid by the control socket alone, by way of package
// control: what hvictl can do, any program can.
//
// Every command is one file. app.go holds what the commands share, exit.go turns
// errors into exit codes, table.go writes for people. [New] returns the tree of
// commands, from which manual pages and completions are made, too. A command
// owns its client, its stream and the programs it runs for as long as it runs.
package command
