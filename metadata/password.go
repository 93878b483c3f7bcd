package metadata

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"time"
)

// Passwords is what the password server needs: the passwords that wait for VMs, and a durable
// record of those taken. Its methods are called concurrently.
type Passwords interface {
	// Password gives the password that waits for the VM, if one does. An error says that this cannot be
	// known, not before ctx ends: the guest is then not told that there is none.
	Password(ctx context.Context, vm string) (password string, ok bool, err error)
	// Taken records that the VM has this password now. Once it has returned nil, Password never
	// gives that password for that VM again, whatever happens to the process or the machine. It may
	// take until ctx ends.
	Taken(ctx context.Context, vm, password string) error
}

// The words of the password protocol. A guest sends the first two in the field DomU_Request.
const (
	domURequest    = "Domu_request" // in the canonical form of the parser
	sendMyPassword = "send_my_password"
	savedPassword  = "saved_password"
	badRequest     = "bad_request"
)

// passwordTime is how long a guest waits for its password, or for that it was taken, to be certain. Its
// script gives up after 20 s (wget -T 20).
const passwordTime = 8 * time.Second

// passwordAnswer answers a known guest. The answer to send_my_password is the password itself, or
// saved_password where none waits.
func (s *Server) passwordAnswer(ctx context.Context, e *entry, asked string, now time.Time) string {
	guest := e.guest.Load()
	log := s.log.With("vm", guest.VM, "network", guest.Network, "ip", guest.IP)
	if s.passwords == nil {
		return badRequest
	}
	if asked != sendMyPassword && asked != savedPassword {
		return badRequest
	}
	ctx, cancel := context.WithTimeout(ctx, passwordTime)
	defer cancel()
	password, ok, err := s.passwords.Password(ctx, guest.VM)
	if err != nil {
		if e.told.now(now) {
			log.Error("whether a password waits is not known", slog.Any("reason", err))
		}
		return badRequest
	}
	switch {
	case !ok:
		return savedPassword
	case asked == sendMyPassword:
		e.hand(password)
		if e.told.now(now) {
			log.Info("password handed out")
		}
		return password
	case !e.mayTake(password):
		return savedPassword
	}
	if err := s.passwords.Taken(ctx, guest.VM, password); err != nil {
		log.Error("taken password not recorded", slog.Any("reason", err))
		return badRequest
	}
	log.Info("password taken")
	return savedPassword
}

// hand remembers which password the guest was given.
func (e *entry) hand(password string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handed = sha256.Sum256([]byte(password))
}

// mayTake says whether the guest's acknowledgement can be meant for this password: it cannot where
// the guest was last given another one, which was replaced before it answered.
func (e *entry) mayTake(password string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	digest := sha256.Sum256([]byte(password))
	return e.handed == [32]byte{} || subtle.ConstantTimeCompare(e.handed[:], digest[:]) == 1
}
