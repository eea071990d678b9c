// Package archive brings verified Debian packages of any suite onto this
// machine, without touching the machine's own dpkg database.
//
// The lab builds its images from packages of suites the host does not run: an
// older Xen from bullseye, a newer emulator from trixie. This room finds the
// mirror the machine's own apt is configured with, verifies what the mirror
// serves against Debian's keyring, works out dependency closures, downloads,
// and unpacks into trees.
//
// # Trust
//
// Nothing is used on the mirror's word. A suite's InRelease must carry at least
// one good OpenPGP signature by a key of the system's debian-archive-keyring,
// must be of the suite that was asked for, and must not be past its Valid-Until.
// Packages indexes are checked against the SHA256 and size in InRelease, and
// every .deb against the SHA256 and size in Packages, before either gets its
// final name in the cache. The local cache is trusted after that, except that
// InRelease is verified again whenever it is read and a .deb is hashed again
// when it is unpacked. Maintainer scripts are never run.
//
// # What is asked of the machine
//
//	/etc/apt/sources.list, sources.list.d   the mirror (read, never written)
//	apt-config dump                         proxy, Acquire::Check-Valid-Until
//	dpkg-deb                                to read a .deb's payload
//	HVI_LAB_MIRROR                          base URL of a Debian mirror, wins over apt's
//	HVI_LAB_SECURITY_MIRROR                 base URL of its security archive
//	HVI_LAB_KEYRING                         OpenPGP keyring file instead of Debian's
//	HVI_LAB_OFFLINE=1                       never use the network
//	HVI_LAB_ALLOW_EXPIRED=1                 accept a suite past its Valid-Until
//	http_proxy, https_proxy, no_proxy       used where apt names no proxy
//
// # The cache
//
// Everything below Options.CacheDir is named after its contents, written under
// a temporary name and renamed, and guarded by flock, so several processes may
// share one cache:
//
//	release/SUITE       the last good InRelease and where it came from
//	index/SHA256.idx    a Packages file, reduced to what the resolver reads
//	debs/SHA256.deb     packages; SHA256.deb.part are resumed
//	trees/NAME-HASH     unpacked trees, HASH over the packages' SHA256; never modify one
//	locks/              lock files, empty
//
// An Archive holds no open files between calls and needs no Close. All methods
// may be called from several goroutines.
package archive
