// Package metadata reads and writes hvi's element in the XML of a libvirt
// domain. It does no I/O.
//
//	<metadata>
//	  <hvi:introspection xmlns:hvi="urn:xen-hvi:domain:1.0" mode="enforce"
//	                     policy="linux-server" require_attach="yes">
//	    <hvi:guard name="kernel-text" action="block"/>
//	  </hvi:introspection>
//	</metadata>
//
// The namespace counts; the prefix may be any. The published grammars of the
// element are in schema, as XSD and as RELAX NG, made from the vocabulary of
// [policy] by go generate.
//
// Reading is strict where the element is ours, and where it almost is: another
// version's namespace, or an element called introspection in none, is an error,
// because libvirt drops what has no namespace and would never tell. What others
// keep in a domain's metadata is walked over and never looked into, even where
// it quotes an element of ours. Every error has the line and column.
//
// A document is bounded in length, depth and guards, and its entities are the
// five of XML itself: a document type is refused.
//
// Everything here is a plain value; nothing is owned and nothing is kept.
package metadata

//go:generate go run ./schema/gen
