package account

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/crypto/bcrypt"
)

// maxPassword is what bcrypt takes into account.
const maxPassword = 72

// ErrPassword is returned for a password that cannot be one.
var ErrPassword = errors.New("password")

// CheckPassword tells whether a user may have that password.
func CheckPassword(password string) error {
	switch {
	case password == "":
		return fmt.Errorf("%w: empty passwords are not allowed", ErrPassword)
	case len(password) > maxPassword:
		return fmt.Errorf("%w: %d bytes, want %d at most", ErrPassword, len(password), maxPassword)
	}
	return nil
}

// bcrypt rather than argon2id: a router that serves 10,000 guests in 40 MB has no 19 MB to spare
// for each login.
func hashPassword(password string, cost int) (string, error) {
	if err := CheckPassword(password); err != nil {
		return "", err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	return string(hash), err
}

// hash waits for its turn: hashing takes a core for its time, and guests come first.
func (u *Users) hash(ctx context.Context, password string) (string, error) {
	if err := u.turn(ctx); err != nil {
		return "", err
	}
	defer u.release()
	return hashPassword(password, u.opts.HashCost)
}

// fits compares a password with a hash. An empty hash fits nothing and takes as long.
func (u *Users) fits(ctx context.Context, hash, password string) (bool, error) {
	if err := u.turn(ctx); err != nil {
		return false, err
	}
	defer u.release()
	// Made whether it is needed or not, so that the first login takes as long for any name.
	dummy, err := u.dummy()
	if err != nil {
		return false, err
	}
	known := hash != ""
	if !known {
		hash = dummy
	}
	if len(password) > maxPassword {
		password, known = password[:maxPassword], false
	}
	err = bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	return err == nil && known, nil
}

func (u *Users) turn(ctx context.Context) error {
	select {
	case u.hashing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (u *Users) release() { <-u.hashing }
