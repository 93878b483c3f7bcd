// Package drop is the drop directory: desired state as files that others
// write, by whatever means, and that the agent reads.
//
// It notices changes through fsnotify on folders, and by scanning where the
// kernel has no watches left, and gives out units that have settled: a file
// that somebody has open for writing is never served, however slow the writer.
// It is also the one way in which the agent itself writes there.
//
// The package knows names, sizes and time stamps. What the files say is for
// others to judge.
package drop
