package storetest

// Dead returns how many of the open connections have been swallowed.
func (p *Proxy) Dead() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		if c.dead {
			n++
		}
	}
	return n
}
