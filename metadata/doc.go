// Package metadata serves guests their metadata, user data and passwords over HTTP, on the guest
// devices of a router.
//
// A Table holds what is served to whom; its writer is the agent. A Server listens on the serving
// addresses of the guest devices and answers from the table. Who asks is told by the device that a
// connection came in on, to which the listening socket is bound, and by its source address. No
// field of a request takes part in that.
//
// The package leaves to others what it is told: which networks are served on which device, which
// addresses are there, what is in a VM's files, and where the record of taken passwords is kept.
//
// # A request
//
// It is refused in this order: 404 for a source that is no guest, 421 for a Host that is none of ours,
// 429 beyond the guest's limits, 401 for want of a session token. On the password server, whose status
// is always 200, each of these is bad_request. What is left is looked up in a tree that is made of the
// guest's entry when it is asked for; listings are made of the same tree.
//
//	/latest/user-data, vendor-data        bytes, from a file
//	/latest/meta-data/NAME, /latest/NAME  the CloudStack shape, flat
//	/latest/meta-data/DIRECTORY/...       EC2's directories, which the listing here leaves out
//	/latest/dynamic/...                   the instance identity document
//	/latest/api/token                     PUT: a session token
//	/1.0/..., /YYYY-MM-DD/...             the EC2 shape
//	?recursive=true                       a directory with all below it, as JSON; of files the size
//	                                      and the entity tag, so that a change of them shows
//	?wait=SECONDS&etag=LAST               the answer once its entity tag is not LAST, or, without
//	                                      etag, not what it is now; else after that time, at most
//	                                      five minutes, as it is then
//
// # Which HTTP server
//
// Requests are parsed by fasthttp, and connections are waited for in an epoll loop of our own (see
// loop), since fasthttp can be given a connection to serve in the goroutine that found it and net/http
// cannot. CPU time of the server for each request, beside one nginx worker and Apache 2.4 with the
// rewrite rules of a CloudStack router, 16 connections, 2 cores:
//
//	                           fasthttp, loop   fasthttp, listener   net/http, tuned   nginx    Apache
//	2 KB user data, kept       16 us  0.33x     19 us                32 us  0.66x      48 us    163 us
//	one name, kept             13 us  0.68x     16 us                22 us  1.15x      19 us    130 us
//	2 KB user data, new        35 us  0.92x     57 us                86 us  2.24x      39 us    206 us
//	one name, new              37 us  1.07x     57 us                90 us  2.49x      36 us    203 us
//
// A new connection is what curl and cloud-init open for each request. Tuned net/http means: no
// keep-alive probes, no multipath TCP, bound sockets as here. Its cost, and fasthttp's behind a
// net.Listener, is that of waking goroutines and threads and of registering each connection with the
// runtime.
//
// Of the malformed, ambiguous and oversized requests that TestMalformedRequestsAreRefused lists,
// neither takes one request for two or two for one. fasthttp also refuses bare LF as an end of
// line (net/http accepts it), keeps to its 4 KB for a whole header (net/http adds 4 KB of its own),
// refuses bodies beyond 1 KB with 413, and lets us answer what it could not parse: 404 to an unknown
// source and bad_request on the password server, where net/http writes its own 400. It has no recover
// of its own; the handlers have.
//
// The figures are printed by
//
//	VRAGENT_FIGURES=1 go test -count=1 -v -run '^TestFigures' ./metadata
package metadata
