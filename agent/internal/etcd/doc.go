// Package etcd gives a store shared by two routers the part of etcd's API, version 3, that it takes:
// ranges, transactions and watches, of the first member of a cluster that answers.
//
// The wire is the business of etcd's own client library, which cannot be linked in only where etcd is
// configured: it makes every daemon 4 MB larger in resident memory, 1 MB of that not shared with its file.
// What is added here is what an operator at a pair of routers needs: one member at a time, whose faults are
// told with its address and in words that say what to do; certificates that are read for each connection;
// and a watch that ends when its member has gone silent, instead of waiting for it.
//
// It knows no leases and no passwords: what keys mean is the business of whoever calls it.
package etcd
