// Package policy holds what an admin declared about the introspection of one
// guest: the one type, [Spec], that an xl config, a libvirt element, a file and
// a command line all become, and the rules that decide what it means.
//
// A front end never assembles a Spec by hand. It feeds the words it found, each
// with the place it found it ([Origin]), to a [Builder]; the builder knows the
// vocabulary, collects every problem, and gives either a valid Spec or all the
// errors at once. A Spec that arrived otherwise (as JSON on the control socket)
// is checked with [Spec.Validate].
//
// [Spec.Effective] resolves a Spec to one action per guard, and says of each
// where it came from.
//
// Three rules are not negotiable, because each prevents a guest that looks
// protected and is not, or a guest that breaks though its owner asked only to
// watch it:
//
//   - An unknown word is an error, never a default. The error names the word,
//     the place, the nearest known word and all known words.
//   - Under mode observe nothing is ever blocked, no process killed, and no guest
//     stopped. A guard explicitly set to block, kill, pause or shutdown under observe
//     is a contradiction and refused, not weakened to an alert: the admin who wrote "block" would
//     believe in it.
//     Only a policy that an admin keeps by name ([Named]) is weakened, since
//     it is written for domains of either mode, and what each guard does says
//     so.
//   - Guards without a mode are an error too: they would protect nothing. So is
//     require_attach with mode off: the domain could never run.
//
// The package holds no state and owns no resources. Every value is safe to copy
// and to share between goroutines as long as nobody changes it; a Builder
// belongs to one goroutine.
package policy
