//! Framed, checksummed TCP with a handshake and reconnect.
