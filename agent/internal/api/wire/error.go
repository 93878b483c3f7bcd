package wire

// The codes of CloudStack's errors. They are HTTP statuses and values of errorcode at once.
const (
	CodeNoCommand     = 400
	CodeUnauthorized  = 401
	CodeMethod        = 405
	CodeRateLimit     = 429
	CodeMalformed     = 430
	CodeParameter     = 431
	CodeUnsupported   = 432
	CodeUnavailable   = 503
	CodeInternal      = 530
	CodeAccount       = 531 // permission denied, or a failed login
	CodeResourceInUse = 536
)

// The values of cserrorcode that answers here have.
const (
	csParameter = 4350
	csOther     = 9999
)

// Error is an answer that says why not.
type Error struct {
	Code int
	Text string
	Err  error // the cause, for logs alone; may be nil
}

func (e *Error) Error() string { return e.Text }

func (e *Error) Unwrap() error { return e.Err }

// Object returns the error as the body of an answer. A refused credential has no cserrorcode.
func (e *Error) Object() Object {
	o := Object{{"uuidList", []string{}}, {"errorcode", e.Code}}
	switch e.Code {
	case CodeUnauthorized, CodeAccount:
	case CodeParameter:
		o = append(o, Field{"cserrorcode", csParameter})
	default:
		o = append(o, Field{"cserrorcode", csOther})
	}
	return append(o, Field{"errortext", e.Text})
}

// Header returns the text as X-Description has it.
func (e *Error) Header() string { return printable(e.Text) }
