// Package etcd is a client for the part of etcd's API, version 3, that a store shared by two routers
// takes: ranges, transactions and watches.
//
// It speaks gRPC on the HTTP/2 of net/http. The library that etcd's own project offers makes each
// daemon 6 MB larger in resident memory and 7 MB on disk, also where no etcd is configured, which most
// routers are; the HTTP/JSON gateway of the server cannot authenticate by the client's certificate and
// may be switched off.
//
// It knows no leases and no passwords: what keys mean is the business of whoever calls it.
package etcd
