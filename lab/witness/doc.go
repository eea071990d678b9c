// Package witness is a guest that knows what it is made of.
//
// Its program (lab/cmd/witness) is the first process of a Linux guest. It makes
// a state that is worth looking at, processes with odd names, threads, sockets,
// mounts, eBPF programs, and then does what the host asks for over the second
// serial port: above all, write down what this very kernel says about itself
// ([Report]), so that what hvi finds in the guest's memory can be compared with
// it. What a report holds is the kernel's own text, unparsed, for a witness
// that understood too little would hide the same mistake twice.
//
// The types here are shared by the program and by who reads its reports; what
// makes the state is for Linux alone and runs as root in a guest of the lab's.
package witness
