// Command hvictl is how people and scripts talk to hvid. It uses nothing but
// the control socket, by way of package control: what hvictl can do, any
// program can.
//
// Every command is one file. main.go runs the command line, app.go holds what
// the commands share, exit.go turns errors into exit codes, table.go writes for
// people. A command owns its client and its stream for as long as it runs.
package main
