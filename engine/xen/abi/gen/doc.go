// Command gen writes the layouts and constants of package abi.
//
// Its input, xen-abi.json, holds facts measured by compiling the public
// headers of every Xen release tag for x86_64: sizes, byte offsets and
// constant values, nothing else. spec.go names what hvi takes from them. The
// generator refuses input in which a structure changes within a release
// series, a field changes its width, or a constant changes its value without
// spec.go expecting it, so such a change is noticed when a release is added
// and not when a guest is attached.
//
// Run it by "go generate ./engine/xen/abi". To add a release, measure its
// headers into a file of the same form and reduce that to what spec.go names:
//
//	go run ./engine/xen/abi/gen -reduce measured.json -in engine/xen/abi/gen/xen-abi.json -out engine/xen/abi
package main
