// Package wire speaks CloudStack's API format: parameters, signatures, and envelopes in JSON and
// XML. It knows no command and no user; everything in it is a value in and a value out.
package wire
