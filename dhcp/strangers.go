package dhcp

// answerStranger serves a client that is no host: with silence.
func (t *Table) answerStranger(_ *answerer, _ *request, _ *Device, _ *Packet, _ party, _ []byte, _ *Reply) error {
	return ErrUnknownHost
}
