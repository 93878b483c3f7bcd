// Package engine is the one loop that brings the drop directory into force and reports what became
// of it.
//
// A change goes through it in this order: the unit's settled files are read (drop), parsed, checked
// and judged (desired), what may come into force is written to the state directory (state), then the
// tables that guests are served from get the new entries (metadata first, so that no guest has an
// address without its data), then devices and addresses follow (netcfg). What fails at one of these
// steps leaves everything as it was before.
//
// Two goroutines work here: Run's own takes changes of files in, another one follows links and
// addresses. Both end with Run. Reports may be asked for from any goroutine; they never wait for a
// disk.
package engine
