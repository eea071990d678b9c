// Package image builds what the lab boots, from Debian packages and nothing
// else.
//
// A [Builder] turns packages into artifacts: the hypervisor, the control
// domain's kernel and initial file system, a guest with its attack module, the
// emulators. An artifact is a folder in the cache, named after a hash over
// everything it is made of (packages by their content, our own sources, the
// recipe's version), built under a temporary name and renamed. So there is
// nothing to invalidate: equal inputs are found, different ones are built
// beside. Several processes may build at a time; the first one's result stays.
//
// Artifacts and package trees belong to the cache: read them only. [Payload]
// alone is made anew for each run, because it holds the programs under test.
//
// The recipes run programs of the host, cc and binutils; [ToolError] names the
// packages where one is missing.
package image
