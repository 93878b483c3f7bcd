package main

import (
	"vragent/agent"
	"vragent/agent/internal/api"
)

// defaultSocket is api.socket where no configuration says otherwise.
const defaultSocket = "/run/vragent/api.sock"

// dial returns a client for the daemon that runs with the configuration in o. A configuration that
// cannot be read is no reason to give up: the daemon may well run with an older one, so the default
// socket stands in.
func (o *options) dial() *api.Client {
	cfg, err := agent.LoadConfig(o.config)
	if err != nil {
		o.guessed = true
		return api.Dial(defaultSocket)
	}
	return api.Dial(cfg.API.Socket)
}
