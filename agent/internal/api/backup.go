package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
)

// backup answers with what write writes. It holds keys and password hashes, so who took it is logged.
func backup(write func(ctx context.Context, out io.Writer) error, log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, _ := PeerFrom(r.Context())
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		args := []any{"user", peer.String(), "from", peer.Socket, "command", "backup"}
		if err := write(r.Context(), w); err != nil {
			log.Warn("audit", append(args, "outcome", "failed", "reason", err)...)
			// Part of it may be on its way, so its end has to be missing.
			panic(http.ErrAbortHandler)
		}
		log.Info("audit", append(args, "outcome", "done")...)
	}
}

// Backup copies a backup of users, pool leases and taken passwords to out. That it is complete is for
// the reader of the backup to see, as well.
func (c *Client) Backup(ctx context.Context, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vragent/v1/backup", nil)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.dialError(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return c.refusal(res)
	}
	if _, err := io.Copy(out, res.Body); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%s: the daemon broke the backup off: its log says why", c.path)
		}
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}
