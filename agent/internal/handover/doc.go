// Package handover keeps sockets open while one daemon ends and the next one starts, in the file
// descriptor store of systemd (FileDescriptorStoreMax= in systemd.service(5), FDSTORE=1 in
// sd_notify(3)).
//
// A socket goes into the store when it is opened, under a name, and the next process of the unit gets
// it back with all that has come in meanwhile: connections wait in the listener's queue, datagrams in
// the socket's buffer. That holds for a restart, an upgrade and a crash; to stop the unit empties the
// store. Where nothing keeps sockets, each process opens its own.
//
// The package knows nothing of what the sockets are for: whoever opens one says how to tell that a
// kept one is right.
package handover
