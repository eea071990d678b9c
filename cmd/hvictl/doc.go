// Command hvictl is how people and scripts talk to hvid. All of it is in
// package command; this one gives it the terminal and the signals.
package main
