// Package manual writes manual pages in the language of man(7).
//
// A [Page] is fed sections, paragraphs, lists and examples; [Page.Bytes] is the
// source of the page. [Commands] makes the pages of a command line from its
// commands.
//
// Text is plain, with two marks: `word` is to be typed as it stands (bold), and
// <word> stands for something else (italic). A mark ends where the line ends.
//
// The source passes mandoc's and groff's warnings: lines are short, a sentence
// begins on a line of its own, and whatever could be a request or an escape in
// the text isn't one.
//
// Nothing is owned and nothing is kept.
package manual
