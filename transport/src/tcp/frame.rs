//! The frame on the wire, and an incremental decoder for it. Pure: bytes in, frames out.
//!
//! ```text
//!  0        4         5         6          8         12
//!  | length | version | channel | reserved | CRC32C  | payload …
//!    u32 LE   u8 = 1    u8        u16 = 0    u32 LE    `length` bytes
//! ```
//!
//! 1. The checksum covers bytes 0–8 and the payload: no field is trusted on its own.
//! 2. A length above `frame_bytes_max` is refused from the header alone, before a byte is allocated for it.
//! 3. The decoder never holds more than twice what it was given plus [`READ_BYTES`], whatever a header claims.
//! 4. The first error is final: the stream has lost its framing and the connection must end.

use bytes::{Buf, Bytes, BytesMut};

use crate::{Channel, Lane};

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 12;
/// The only frame version there is.
pub const FRAME_VERSION: u8 = 1;
/// How much one read may bring; one system call for some hundred small frames.
pub const READ_BYTES: usize = 64 << 10;

/// Below this much free space the buffer grows, so that no read is for a handful of bytes.
const SPACE_BYTES_MIN: usize = 4 << 10;

/// Why a byte stream is no stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field exceeds the limit.
    #[error("frame of {bytes} bytes, limit {bytes_max}")]
    TooLarge {
        /// What the header claims.
        bytes: usize,
        /// What this end takes.
        bytes_max: usize,
    },
    /// A frame version this build does not read.
    #[error("frame version {0}, this build reads {FRAME_VERSION}")]
    Version(u8),
    /// No such channel, or not one of this connection's lane, or reserved bits are set.
    #[error("channel {0} on the wrong lane, or unknown")]
    Channel(u8),
    /// The payload or header is not what was sent.
    #[error("frame checksum mismatch")]
    Checksum,
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
}

/// The header of a frame with this payload on this channel.
pub fn encode_header(channel: Channel, payload: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    // A payload is at most `frame_bytes_max`, which `TcpConfig::validate` keeps below 4 GiB.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let [a, b, c, d] = length.to_le_bytes();
    let head = [a, b, c, d, FRAME_VERSION, channel as u8, 0, 0];
    let [w, x, y, z] = checksum(&head, payload).to_le_bytes();
    let [h0, h1, h2, h3, h4, h5, h6, h7] = head;
    [h0, h1, h2, h3, h4, h5, h6, h7, w, x, y, z]
}

/// Turns the bytes of one connection into frames. Fill [`FrameDecoder::space`], then call [`FrameDecoder::next_frame`]
/// until it has no more.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    lane: Lane,
    frame_bytes_max: usize,
}

impl FrameDecoder {
    /// A decoder for one connection's lane.
    pub fn new(lane: Lane, frame_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), lane, frame_bytes_max }
    }

    /// The buffer to append read bytes to, with room for a good read. Frames taken out earlier share its memory.
    ///
    /// A frame that is still arriving makes it grow by as much as has arrived, not by what its header claims.
    pub fn space(&mut self) -> &mut BytesMut {
        let missing = self.missing();
        let free = self.buffer.capacity() - self.buffer.len();
        if free < SPACE_BYTES_MIN.min(missing) || (self.buffer.is_empty() && free < SPACE_BYTES_MIN) {
            let earned = self.buffer.len().max(READ_BYTES);
            self.buffer.reserve(missing.clamp(READ_BYTES, earned));
        }
        &mut self.buffer
    }

    /// The next whole frame, sliced out of the buffer without a copy; `None` when more bytes are needed.
    ///
    /// # Errors
    /// See [`FrameError`]; after one the decoder must be dropped.
    pub fn next_frame(&mut self) -> Result<Option<(Channel, Bytes)>, FrameError> {
        let Some((header, _)) = self.buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let header = *header;
        let (channel, length, sum) = self.parse(&header)?;
        if self.buffer.len() < FRAME_HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        let [a, b, c, d, e, f, g, h, ..] = header;
        if checksum(&[a, b, c, d, e, f, g, h], &payload) != sum {
            return Err(FrameError::Checksum);
        }
        Ok(Some((channel, payload)))
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it ends inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    /// Bytes to the end of the frame that is arriving, by its header; a read's worth when there is no header yet.
    fn missing(&self) -> usize {
        match self.buffer.first_chunk::<4>() {
            Some(length) => (u32::from_le_bytes(*length) as usize)
                .min(self.frame_bytes_max)
                .saturating_add(FRAME_HEADER_BYTES)
                .saturating_sub(self.buffer.len()),
            None => READ_BYTES,
        }
    }

    fn parse(&self, header: &[u8; FRAME_HEADER_BYTES]) -> Result<(Channel, usize, u32), FrameError> {
        let [a, b, c, d, version, channel, reserved @ .., w, x, y, z] = *header;
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        let bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        if bytes > self.frame_bytes_max {
            return Err(FrameError::TooLarge { bytes, bytes_max: self.frame_bytes_max });
        }
        let known = Channel::from_u8(channel).filter(|c| c.lane() == self.lane && reserved == [0, 0]);
        let channel = known.ok_or(FrameError::Channel(channel))?;
        Ok((channel, bytes, u32::from_le_bytes([w, x, y, z])))
    }
}

fn checksum(head: &[u8; 8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(channel: Channel, payload: &[u8]) -> Vec<u8> {
        let mut wire = encode_header(channel, payload).to_vec();
        wire.extend_from_slice(payload);
        wire
    }

    /// Feeds `wire` in pieces of `step` bytes and returns what came out.
    fn decode(wire: &[u8], step: usize, lane: Lane) -> Result<Vec<(Channel, Bytes)>, FrameError> {
        let mut decoder = FrameDecoder::new(lane, 1 << 20);
        let mut out = Vec::new();
        for piece in wire.chunks(step) {
            decoder.space().extend_from_slice(piece);
            while let Some(frame) = decoder.next_frame()? {
                out.push(frame);
            }
        }
        decoder.finish()?;
        Ok(out)
    }

    #[test]
    fn frames_survive_any_split() {
        let big = vec![7; 200_000];
        let sent = [(Channel::Heartbeat, &b""[..]), (Channel::Log, &b"entry"[..]), (Channel::Forward, &big[..])];
        let wire: Vec<u8> = sent.iter().flat_map(|(c, p)| wire(*c, p)).collect();
        for step in [1, 7, 4096, wire.len()] {
            let got = decode(&wire, step, Lane::Main).unwrap();
            assert!(got.iter().map(|(c, p)| (*c, &p[..])).eq(sent.iter().copied()), "split every {step} bytes");
        }
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        let good = wire(Channel::Vote, b"a vote");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, bad.len(), Lane::Main).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn errors_name_their_reason() {
        let check = |at: usize, byte: u8, expected: FrameError| {
            let mut bad = wire(Channel::Log, b"x");
            bad[at] = byte;
            assert_eq!(decode(&bad, 64, Lane::Main), Err(expected));
        };
        check(3, 0xff, FrameError::TooLarge { bytes: 0xff00_0001, bytes_max: 1 << 20 });
        check(4, 9, FrameError::Version(9));
        check(5, 9, FrameError::Channel(9));
        check(5, 4, FrameError::Channel(4));
        check(6, 1, FrameError::Channel(2));
        check(8, 0, FrameError::Checksum);
        assert_eq!(decode(&wire(Channel::Log, b"xy")[..13], 64, Lane::Main), Err(FrameError::Truncated));
        assert_eq!(decode(&wire(Channel::Bulk, b"chunk"), 64, Lane::Bulk).unwrap().len(), 1);
    }
}
