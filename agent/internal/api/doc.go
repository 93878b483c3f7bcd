// Package api is how programs talk to a running agent: HTTP and JSON over a unix socket.
//
// It declares the reports that it hands out and the Backend that it asks for them; the agent
// implements the Backend. Local is the server's handler, ListenUnix and Serve put it on a socket,
// Client is the other end. Nothing here knows how a unit is judged or served.
package api
