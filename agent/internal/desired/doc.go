// Package desired turns the units of the drop directory into what the router is to do: it parses
// and checks them, judges conflicts between them, keeps the last good content of each, and derives
// from it what DHCP, metadata and netcfg serve from.
//
// It alone sees all documents together. It touches no file, no socket and no clock: the engine
// hands it contents and carries out the moves that it answers with.
//
// A unit has a newest valid content (wanted) and a content in force (had). Judge finds the moves
// from wanted to had that leave no two contents in conflict; Accept makes them.
package desired
